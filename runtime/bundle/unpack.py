"""A packed bundle as a bundle's folder: unpacked once into the user's cache."""

import hashlib
import os
import sys
import tarfile
from pathlib import Path

from bitdance_edge.runtime.bundle.files import cannot_write, put_in_place, staged_folder
from bitdance_edge.runtime.errors import BundleError

SMALL = ".json"  # files that are read for the archive's identity: a manifest holds the SHA-256 of all others


def unpacked(archive: Path) -> Path:
    """The folder of a bundle that ``bitdance-edge pack`` wrote as ``archive``; unpacked the first time.

    Raises:
        BundleError: the file is not a packed bundle, or is cut short.
        StorageError: the cache cannot be written.
    """
    try:
        with tarfile.open(archive) as tar:
            folder = cache_folder() / _identity(tar, archive)
            if not folder.exists():
                with staged_folder(folder) as staged:
                    tar.extractall(staged, filter="data")
                    put_in_place(staged, folder, replace=True)
    except OSError as error:
        raise cannot_write(cache_folder(), error) from None
    except (tarfile.TarError, EOFError) as error:
        raise BundleError(
            f"{archive} is not a packed bundle ({error}); copy it again, or name a bundle's folder"
        ) from None
    return next(folder.iterdir())


def cache_folder() -> Path:
    """Where packed bundles are unpacked: BITDANCE_EDGE_CACHE, or this system's folder for caches."""
    if named := os.environ.get("BITDANCE_EDGE_CACHE"):
        return Path(named)
    homes = {"win32": ("LOCALAPPDATA", "AppData/Local"), "darwin": ("", "Library/Caches")}
    variable, usual = homes.get(sys.platform, ("XDG_CACHE_HOME", ".cache"))
    return Path(os.environ.get(variable) or Path.home() / usual) / "bitdance-edge"


def _identity(tar: tarfile.TarFile, archive: Path) -> str:
    """A name for what the archive holds; refuses one that is not a single folder with a bundle."""
    members = tar.getmembers()
    roots = {member.name.partition("/")[0] for member in members}
    if len(roots) != 1 or f"{next(iter(roots))}/bundle.json" not in {member.name for member in members}:
        raise BundleError(
            f"{archive} is not a packed bundle; make one with: bitdance-edge pack BUNDLE -o {archive.name}"
        )
    digest = hashlib.sha256()
    for member in members:
        digest.update(f"{member.name}\0{member.size}\0".encode())
        if member.name.endswith(SMALL) and (content := tar.extractfile(member)) is not None:
            digest.update(content.read())
    return digest.hexdigest()[:16]
