"""Temporary names for what is being written, and claims on what will be: both end with their process, however it ends.

A temporary name is ``.writing-`` and 16 hexadecimal digits, in the folder of what it becomes. While its process lives,
it is locked (flock, which the system releases when the process dies); the next process that writes into that folder
removes those that are not. A claim is such a lock on the name of an output, so that two processes never write the same
one.
"""

import ctypes
import errno
import functools
import hashlib
import os
import re
import secrets
import shutil
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bitdance_edge.errors import OutputBusyError
from bitdance_edge.interrupts import holding

if sys.platform != "win32":
    import fcntl

TEMPORARY = re.compile(r"\.writing-[0-9a-f]{16}(\..*)?")
REPLACED = re.compile(r"\.(?P<name>.+)\.replaced-[0-9a-f]{16}")  # the old content of a folder, between two renames
# Seconds after which a temporary name counts as abandoned where no lock can say (Windows, some network file systems).
ABANDONED_AFTER = 24 * 60 * 60
CLAIM_TRIES, CLAIM_PAUSE = 5, 0.02  # another process that looks whether a claim is abandoned holds it for a moment
NO_REPLACE, EXCHANGE = 1, 2  # of Linux's renameat2
AT_FDCWD = -100
UNSUPPORTED = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP)


@contextmanager
def temporary(folder: Path, make: Callable[[Path], object], suffix: str = "") -> Iterator[Path]:
    """Make a file or folder under a temporary name in ``folder``; what still has that name afterwards is removed.

    Raises:
        OSError: it cannot be made.
    """
    _tidied(folder)
    with holding():
        # Named before it exists, so that an interrupt at any moment finds it to remove.
        path = folder / f".writing-{secrets.token_hex(8)}{suffix}"
        lock = None
        try:
            while lock is None:  # unless another process took it for abandoned before it was locked
                make(path)
                lock = _locked(path)
            yield path
        finally:
            remove(path)
            if lock is not None and lock >= 0:
                os.close(lock)


@contextmanager
def claimed(output: Path, folder: Path | None = None) -> Iterator[None]:
    """Keep other processes from writing ``output`` while the block runs; what was abandoned beside it is removed.

    Args:
        folder: that the lock is in; None: the one that ``output`` is in. It is made where it is missing.

    Raises:
        OutputBusyError: another process, or another thread, is writing it.
        OSError: the lock cannot be made.
    """
    folder = output.parent if folder is None else folder
    folder.mkdir(parents=True, exist_ok=True)
    remove_abandoned(folder)
    with holding(), _claim(output, folder) as free:
        if not free:
            raise OutputBusyError(
                f"another process is writing {output}; wait until it has ended, or choose another output"
            )
        yield


def remove_abandoned(folder: Path) -> None:
    """Remove what ended processes left in a folder, and put back a folder that one of them was replacing."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in list(entries):
            if replaced := REPLACED.fullmatch(entry.name):
                _put_back_if_abandoned(Path(entry.path), folder / replaced["name"])
            elif TEMPORARY.fullmatch(entry.name):
                _remove_if_abandoned(Path(entry.path))


def remove(path: Path) -> None:
    """Remove a file, a link or a folder, if it is there and may be removed."""
    with suppress(OSError):
        if stat.S_ISDIR(path.lstat().st_mode):
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


def rename_new(source: Path, target: Path) -> None:
    """Rename a file or folder; where the system can, in one step with the check that nothing has the new name.

    Raises:
        FileExistsError: something has it.
        OSError: it cannot be renamed.
    """
    if _rename_with(NO_REPLACE, source, target):
        return
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
    source.rename(target)


def replace_folder(staged: Path, folder: Path) -> None:
    """Put ``staged`` in the place of ``folder``; the old one then has the temporary name, or is removed.

    In one step where the system can. Elsewhere the old folder is renamed first, to a name from which
    ``remove_abandoned`` puts it back if the process dies before the second rename.

    Raises:
        OSError: one cannot be renamed; ``folder`` is then unchanged.
    """
    if _rename_with(EXCHANGE, staged, folder):
        return
    kept = folder.with_name(f".{folder.name}.replaced-{secrets.token_hex(8)}")
    folder.rename(kept)
    try:
        staged.rename(folder)
    except BaseException:
        kept.rename(folder)
        raise
    kept.rename(staged)  # its temporary name, with which it is removed


def stopped_replacement(folder: Path) -> Path | None:
    """What a folder that is not there was, if a process that replaced it was stopped between two renames."""
    with suppress(OSError), os.scandir(folder.parent) as entries:
        for entry in entries:
            found = REPLACED.fullmatch(entry.name)
            if found and found["name"] == folder.name:
                return Path(entry.path)
    return None


@functools.cache
def _tidied(folder: Path) -> None:
    """``remove_abandoned``, once for each folder: it reads all names in it."""
    remove_abandoned(folder)


@contextmanager
def _claim(output: Path, folder: Path) -> Iterator[bool]:
    """Lock a file named after an output, and remove it afterwards; False where another process has it."""
    name = "." if folder == output else output.name  # a folder that is locked inside may be spelled in several ways
    path, lock = folder / f".writing-{hashlib.sha256(os.fsencode(name)).hexdigest()[:16]}.lock", None
    try:
        for _ in range(CLAIM_TRIES):
            path.touch()
            lock = _locked(path)
            if lock is not None:
                break
            time.sleep(CLAIM_PAUSE)
        yield lock is not None
    finally:
        if lock is not None:
            remove(path)
            if lock >= 0:
                os.close(lock)


def _locked(path: Path) -> int | None:
    """Lock a file or folder, until its descriptor is closed; None where another process has it, or removed it.

    -1 where nothing can be locked.
    """
    if sys.platform == "win32":
        return -1
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), path.lstat()):
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    except OSError:  # a file system without locks
        os.close(descriptor)
        return -1
    os.close(descriptor)
    return None


def _remove_if_abandoned(path: Path) -> None:
    with suppress(OSError):
        if path.is_symlink():  # none of ours is
            return
        lock = _locked(path)
        if lock == -1 and time.time() - path.lstat().st_mtime > ABANDONED_AFTER:
            remove(path)
        elif lock is not None and lock >= 0:
            remove(path)
            os.close(lock)


def _put_back_if_abandoned(kept: Path, folder: Path) -> None:
    """Put a folder's old content back where its replacement was stopped before the new one was there."""
    with suppress(OSError), _claim(folder, folder.parent) as free:
        if free and os.path.lexists(folder):
            remove(kept)
        elif free:
            kept.rename(folder)


def _rename_with(flag: int, source: Path, target: Path) -> bool:
    """Rename by Linux's renameat2; False where system or file system do not have it.

    Raises:
        OSError: it refuses.
    """
    call = getattr(_libc(), "renameat2", None)
    if call is None:
        return False
    if call(AT_FDCWD, os.fsencode(source), AT_FDCWD, os.fsencode(target), flag) == 0:
        return True
    number = ctypes.get_errno()
    if number in UNSUPPORTED:
        return False
    raise OSError(number, os.strerror(number), str(target))


@functools.cache
def _libc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
