"""Files and folders that are written whole or not at all."""

import errno
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from bitdance_edge.runtime.errors import StorageError

# Seconds after which a staged folder counts as abandoned where a process cannot be asked for (Windows).
ABANDONED_AFTER = 24 * 60 * 60
POSIX = os.name == "posix"
REMEDIES = {
    errno.ENOSPC: "free some space on that disk, or choose another folder",
    errno.EDQUOT: "free some of your quota on that disk, or choose another folder",
    errno.EACCES: "get permission to write there, or choose another folder",
    errno.EPERM: "get permission to write there, or choose another folder",
    errno.EROFS: "the file system is mounted read-only: choose another folder",
}


@contextmanager
def written_whole(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for writing under a temporary name in the folder of ``path``; rename it to ``path`` when complete.

    Raises:
        StorageError: the folder cannot be made or written, or the disk is full.
    """
    # Named before it exists, so that an interrupt at any moment finds it to remove.
    staged = path.with_name(f".writing-{secrets.token_hex(8)}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with staged.open("xb") as file:
            yield file
        staged.replace(path)
    except OSError as error:
        # An error of a write names no file; one that names another file was raised by the caller's own work.
        if error.filename is None or Path(str(error.filename)) in (staged, path, *path.parents):
            raise cannot_write(path, error) from None
        raise
    finally:
        with suppress(OSError):  # also where the folder itself could not be made
            staged.unlink()


def cannot_write(path: Path, error: OSError) -> StorageError:
    """An error that says why ``path`` could not be written, and what helps against that."""
    remedy = REMEDIES.get(error.errno or 0, "choose another folder")
    return StorageError(f"cannot write {path}: {error.strerror or error}; {remedy}")


@contextmanager
def staged_folder(folder: Path) -> Iterator[Path]:
    """Make a folder next to ``folder``, to be filled and then moved by ``put_in_place``; remove it if it was not moved.

    Folders that killed processes left behind are removed first.

    Raises:
        OSError: the folder cannot be made.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{folder.name}.writing-"
    for left in folder.parent.glob(f"{prefix}*"):
        if _abandoned(left, left.name.removeprefix(prefix)):
            shutil.rmtree(left, ignore_errors=True)
    staged = folder.with_name(f"{prefix}{os.getpid()}")
    try:
        staged.mkdir()
        yield staged
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def put_in_place(staged: Path, folder: Path) -> None:
    """Replace ``folder`` by ``staged``: two renames, of which the first is undone if the second fails.

    Raises:
        OSError: ``staged`` does not exist or cannot be renamed; ``folder`` is then unchanged.
    """
    replaced = staged.with_name(f"{staged.name}.old")
    try:
        if folder.exists():
            folder.rename(replaced)
        staged.rename(folder)
    finally:
        if replaced.exists() and not folder.exists():
            replaced.rename(folder)
        shutil.rmtree(replaced, ignore_errors=True)


def _abandoned(left: Path, owner: str) -> bool:
    """Whether the process that made a staged folder, named by ``PID`` or ``PID.old``, has ended."""
    pid = owner.partition(".")[0]
    if POSIX and pid.isdecimal():
        return not _runs(int(pid))
    try:
        return time.time() - left.stat().st_mtime > ABANDONED_AFTER
    except OSError:  # its process has just removed it
        return False


def _runs(pid: int) -> bool:
    """Whether a process exists (POSIX: signal 0 is checked and not sent)."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # of another user
        return True
    return True
