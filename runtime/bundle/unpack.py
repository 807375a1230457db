"""A packed bundle as a bundle's folder: unpacked once into the user's cache."""

import hashlib
import os
import sys
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from bitdance_edge.runtime.bundle.files import cannot_write, put_in_place, staged_folder
from bitdance_edge.runtime.bundle.limits import InFolder
from bitdance_edge.runtime.bundle.specs import MANIFEST
from bitdance_edge.runtime.bundle.tar_members import UNREADABLE, TarMember
from bitdance_edge.runtime.errors import BundleError, StorageError

MOST_FILES = 10_000
MOST_SMALL = 64_000_000  # bytes; a tokenizer of the published models has 11 MB
MOST_EXTENSION = 8192  # bytes of a header that holds two of the longest paths
SMALL = ".json"  # files that are read for the archive's identity: a manifest holds the SHA-256 of all others


def unpacked(archive: Path) -> Path:
    """The folder of a bundle that ``bitdance-edge pack`` wrote as ``archive``; unpacked the first time.

    Raises:
        BundleError: the file is not a packed bundle, or is cut short.
        StorageError: the cache cannot be written.
    """
    try:
        with tarfile.open(archive, "r:", tarinfo=_PackedMember) as tar:
            folder = cache_folder() / _identity(tar, archive)
            if not folder.exists():
                # It exists where another process has unpacked it meanwhile.
                with staged_folder(folder) as staged, suppress(FileExistsError):
                    tar.extractall(staged, filter=_undated)
                    put_in_place(staged, folder, replace=False)
    except OSError as error:
        raise cannot_write(cache_folder(), error) from None
    except UNREADABLE as error:
        raise BundleError(
            f"{archive} is not a packed bundle ({error}); copy it again, or name a bundle's folder"
        ) from None
    return next(folder.iterdir())


class _PackedMember(TarMember):
    most_extension = MOST_EXTENSION


def _undated(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo:
    """The member as it is extracted: safely, and without a time, which no file system need be able to hold."""
    return tarfile.data_filter(member, folder).replace(mtime=0, deep=False)


def _packed_members(tar: tarfile.TarFile, archive: Path) -> Iterator[tarfile.TarInfo]:
    """Yield the members; refuses what ``pack`` does not write: all but files, and links to an earlier one."""
    roots, names = set(), set()
    for member in tar:
        roots.add(member.name.partition("/")[0])
        plain = member.isreg() or (member.islnk() and member.linkname in names)
        plain = plain and InFolder().broken(member.name) is None and member.name not in names
        names.add(member.name)
        if not plain or len(roots) > 1 or len(names) > MOST_FILES or tar.pax_headers:
            break
        yield member
    else:
        if roots and f"{roots.pop()}/{MANIFEST}" in names:
            return
    raise BundleError(f"{archive} is not a packed bundle; make one with: bitdance-edge pack BUNDLE -o {archive.name}")


def cache_folder() -> Path:
    """Where packed bundles are unpacked: BITDANCE_EDGE_CACHE, or this system's folder for caches.

    Raises:
        StorageError: there is neither.
    """
    if named := os.environ.get("BITDANCE_EDGE_CACHE"):
        return Path(named)
    homes = {"win32": ("LOCALAPPDATA", "AppData/Local"), "darwin": ("", "Library/Caches")}
    variable, usual = homes.get(sys.platform, ("XDG_CACHE_HOME", ".cache"))
    try:
        folder = Path(os.environ.get(variable) or Path.home() / usual)
    except RuntimeError:  # no HOME, and a user that this machine does not know, as in a container
        raise StorageError("there is no home folder for unpacked bundles; set BITDANCE_EDGE_CACHE") from None
    return folder / "bitdance-edge"


def _identity(tar: tarfile.TarFile, archive: Path) -> str:
    """A name for what the archive holds; refuses one that is not a single folder with a bundle."""
    digest = hashlib.sha256()
    for member in _packed_members(tar, archive):
        digest.update(f"{member.name}\0{member.size}\0".encode())
        if member.name.endswith(SMALL) and member.size > MOST_SMALL:
            raise BundleError(f"{archive}: {member.name} has {member.size / 1e6:.0f} MB, far more than such files have")
        if member.name.endswith(SMALL) and (content := tar.extractfile(member)) is not None:
            digest.update(content.read())
    return digest.hexdigest()[:16]
