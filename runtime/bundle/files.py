"""Files and folders that are whole or not there."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from bitdance_edge.runtime.errors import RequestError


@contextmanager
def written_whole(path: Path) -> Iterator[IO[bytes]]:
    """A file to write, under another name beside ``path`` until it is complete, then renamed.

    Raises:
        RequestError: the folder cannot be made or written, or the disk is full.
    """
    # Named before it exists, so that an interrupt at any moment finds it to remove.
    aside = path.with_name(f".writing-{secrets.token_hex(8)}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("xb") as file:
            yield file
        aside.replace(path)
    except OSError as error:
        raise RequestError(f"cannot write {path}: {error.strerror or error}; choose another folder") from None
    finally:
        with suppress(OSError):  # also where the folder itself could not be made
            aside.unlink()


@contextmanager
def folder_aside(folder: Path) -> Iterator[Path]:
    """A folder beside ``folder``, to be filled and put in its place; it is gone afterwards, whatever happens.

    Those that killed processes left behind are cleared. ``OSError`` passes.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{folder.name}.writing-"
    for left in folder.parent.glob(f"{prefix}*"):
        if not Path(f"/proc/{left.name.removeprefix(prefix)}").exists():
            shutil.rmtree(left, ignore_errors=True)
    aside = folder.with_name(f"{prefix}{os.getpid()}")
    try:
        aside.mkdir()
        yield aside
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def put_in_place(aside: Path, folder: Path) -> None:
    """Two renames; if the second does not come about, the first is taken back."""
    replaced = aside.with_name(f"{aside.name}.old")
    try:
        if folder.exists():
            folder.rename(replaced)
        aside.rename(folder)
    finally:
        if replaced.exists() and not folder.exists():
            replaced.rename(folder)
        shutil.rmtree(replaced, ignore_errors=True)
