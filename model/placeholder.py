"""What downloads leave in the place of a file: a Git LFS pointer, a web page, a server's message, nothing at all."""

from pathlib import Path

from bitdance_edge.model.errors import ModelError

LFS = b"version https://git-lfs.github.com/spec/"
PAGES = (b"<!doctype", b"<html", b"<?xml", b"<head", b"<body")
START = 512  # bytes that tell


def require_content(path: Path) -> bytes:
    """Return the first bytes of a file of a checkpoint.

    Raises:
        ModelError: the file is missing, cannot be read, or is something else in its place.
    """
    if not path.is_file():
        if path.is_symlink():
            raise ModelError(f"{path} is a link to {path.readlink()}, which is missing; download the checkpoint again")
        what = "is not a file" if path.exists() else "is missing"
        raise ModelError(f"{path} {what}; the checkpoint is incomplete: copy it again")
    try:
        with path.open("rb") as content:
            start = content.read(START)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}; check its permissions") from None
    if complaint := _complaint(start):
        raise ModelError(f"{path} {complaint}")
    return start


def text_in_place(start: bytes) -> str | None:
    """Return the first line of what begins as text, where a binary file is expected; None where it is binary."""
    line = start.splitlines()[0] if start else b""
    return line[:60].decode("ascii") if len(line) >= 8 and line.isascii() and line.decode().isprintable() else None


def _complaint(start: bytes) -> str | None:
    if not start:
        return "is empty; the download did not finish: download it again"
    if start.startswith(LFS):
        return "is a Git LFS pointer, not the file itself; fetch it: git lfs pull, or hf download"
    if start.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(PAGES):
        return "is a web page, not the file itself; download it again from the page's download link, or by hf download"
    return None
