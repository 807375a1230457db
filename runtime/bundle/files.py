"""Files and folders that are written whole or not at all."""

import errno
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from bitdance_edge.interrupts import require_uninterrupted
from bitdance_edge.runtime.errors import StorageError
from bitdance_edge.storage import claimed, rename_new, replace_folder, temporary

REMEDIES = {
    errno.ENOSPC: "free some space on that disk, or choose another folder",
    errno.EDQUOT: "free some of your quota on that disk, or choose another folder",
    errno.EACCES: "get permission to write there, or choose another folder",
    errno.EPERM: "get permission to write there, or choose another folder",
    errno.EROFS: "the file system is mounted read-only: choose another folder",
}


@contextmanager
def written_whole(path: Path, *, replace: bool = True) -> Iterator[IO[bytes]]:
    """Open a file for writing under a temporary name in the folder of ``path``; rename it to ``path`` when complete.

    Raises:
        StorageError: the folder cannot be made or written, the disk is full, ``path`` is a pipe or device, or without
            ``replace`` there is such a file.
    """
    staged = path
    require_replaceable(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary(path.parent, lambda staged: staged.open("xb").close(), path.suffix) as staged:
            with staged.open("wb") as file:
                yield file
            if replace:
                staged.replace(path)
            else:
                require_uninterrupted()
                rename_new(staged, path)
    except OSError as error:
        # An error of a write names no file; one that names another file was raised by the caller's own work.
        if error.filename is None or Path(str(error.filename)) in (staged, path, *path.parents):
            raise cannot_write(path, error) from None
        raise


def require_replaceable(path: Path) -> None:
    """Refuse to put a file in the place of a pipe, device or socket, or of a link to one.

    Raises:
        StorageError: it is one.
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):  # it is not there, or what writes it says why it cannot be
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise StorageError(f"cannot write {path}: it is a pipe, device or socket; give the name of a file")


def cannot_write(path: Path, error: OSError) -> StorageError:
    """An error that says why ``path`` could not be written, and what helps against that."""
    remedy = REMEDIES.get(error.errno or 0, "choose another folder")
    return StorageError(f"cannot write {path}: {error.strerror or error}; {remedy}")


@contextmanager
def claimed_output(output: Path, *, lock_in: Path | None = None) -> Iterator[None]:
    """Keep other processes from writing ``output``, a file or a folder, while the block runs.

    Args:
        lock_in: folder that the lock is kept in, and that is made; None: the one that ``output`` is in.

    Raises:
        OutputBusyError: another process is writing it.
        StorageError: the folder cannot be made or written.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(claimed(output, lock_in))
        except OSError as error:
            raise cannot_write(output, error) from None
        yield


@contextmanager
def staged_folder(folder: Path) -> Iterator[Path]:
    """Make a folder next to ``folder``, to be filled and then moved by ``put_in_place``; remove it if it was not moved.

    Raises:
        OSError: the folder cannot be made.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with temporary(folder.parent, Path.mkdir) as staged:
        yield staged


def put_in_place(staged: Path, folder: Path, *, replace: bool) -> None:
    """Give ``staged`` the name ``folder``; a folder that has it is replaced, and lost only when the new one is there.

    Raises:
        FileExistsError: there is such a folder, and not ``replace``.
        OSError: ``staged`` does not exist or cannot be renamed; ``folder`` is then unchanged.
        KeyboardInterrupt: an interrupt was lost in the work before.
    """
    require_uninterrupted()
    if replace and folder.exists():
        replace_folder(staged, folder)
    else:
        rename_new(staged, folder)
