"""A packed bundle as a bundle's folder: unpacked once into the user's cache."""

import hashlib
import os
import sys
import tarfile
from collections.abc import Set
from contextlib import suppress
from itertools import islice
from pathlib import Path

from bitdance_edge.runtime.bundle.files import cannot_write, put_in_place, staged_folder
from bitdance_edge.runtime.bundle.limits import InFolder
from bitdance_edge.runtime.bundle.specs import MANIFEST
from bitdance_edge.runtime.errors import BundleError

MOST_FILES = 10_000
MOST_SMALL = 64_000_000  # bytes; a tokenizer of the published models has 11 MB
SMALL = ".json"  # files that are read for the archive's identity: a manifest holds the SHA-256 of all others


def unpacked(archive: Path) -> Path:
    """The folder of a bundle that ``bitdance-edge pack`` wrote as ``archive``; unpacked the first time.

    Raises:
        BundleError: the file is not a packed bundle, or is cut short.
        StorageError: the cache cannot be written.
    """
    try:
        with tarfile.open(archive, "r:") as tar:
            folder = cache_folder() / _identity(tar, archive)
            if not folder.exists():
                # It exists where another process has unpacked it meanwhile.
                with staged_folder(folder) as staged, suppress(FileExistsError):
                    tar.extractall(staged, filter="data")
                    put_in_place(staged, folder, replace=False)
    except OSError as error:
        raise cannot_write(cache_folder(), error) from None
    except (tarfile.TarError, EOFError) as error:
        raise BundleError(
            f"{archive} is not a packed bundle ({error}); copy it again, or name a bundle's folder"
        ) from None
    return next(folder.iterdir())


def _is_packed(member: tarfile.TarInfo, names: Set[str]) -> bool:
    """Whether ``pack`` writes such an entry: a whole file, or a link to an equal one of the same archive."""
    if InFolder().broken(member.name) is not None:
        return False
    return (member.isreg() and not member.issparse()) or (member.islnk() and member.linkname in names)


def cache_folder() -> Path:
    """Where packed bundles are unpacked: BITDANCE_EDGE_CACHE, or this system's folder for caches."""
    if named := os.environ.get("BITDANCE_EDGE_CACHE"):
        return Path(named)
    homes = {"win32": ("LOCALAPPDATA", "AppData/Local"), "darwin": ("", "Library/Caches")}
    variable, usual = homes.get(sys.platform, ("XDG_CACHE_HOME", ".cache"))
    return Path(os.environ.get(variable) or Path.home() / usual) / "bitdance-edge"


def _identity(tar: tarfile.TarFile, archive: Path) -> str:
    """A name for what the archive holds; refuses one that is not a single folder with a bundle."""
    members = list(islice(tar, MOST_FILES + 1))
    names = [member.name for member in members]
    roots = {name.partition("/")[0] for name in names}
    whole = len(roots) == 1 and f"{next(iter(roots))}/{MANIFEST}" in names
    if not whole or len(set(names)) < len(names) or not all(_is_packed(member, set(names)) for member in members):
        raise BundleError(
            f"{archive} is not a packed bundle; make one with: bitdance-edge pack BUNDLE -o {archive.name}"
        )
    digest = hashlib.sha256()
    for member in members:
        digest.update(f"{member.name}\0{member.size}\0".encode())
        if member.name.endswith(SMALL) and member.size > MOST_SMALL:
            raise BundleError(f"{archive}: {member.name} has {member.size / 1e6:.0f} MB, far more than such files have")
        if member.name.endswith(SMALL) and (content := tar.extractfile(member)) is not None:
            digest.update(content.read())
    return digest.hexdigest()[:16]
