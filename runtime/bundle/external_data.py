"""Weights that a graph keeps in a file next to it (https://onnx.ai/onnx/repo-docs/ExternalData.html).

Reads hard links too, which the ``onnx`` package refuses: the weights of a linked bundle are the checkpoint's own files.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from bitdance_edge.runtime.bundle.module_paths import Entry
from bitdance_edge.runtime.errors import BundleError

MOST_DIGITS = 18  # of an offset or a length


def read_external(entries: Iterable[Entry], folder: Path) -> bytes:
    """Read the bytes of one tensor.

    Args:
        entries: the tensor's ``external_data``: ``location``, ``offset`` and ``length``.
        folder: of the graph; a location elsewhere is refused.

    Raises:
        BundleError: the location is not a file in the graph's folder, or the file is too short.
    """
    path, offset, length = external_place(entries, folder)
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(length)


def mapped_external(entries: Iterable[Entry], folder: Path, dtype: np.dtype) -> np.ndarray:
    """Map one tensor ``[elements]``: its values are read when they are used, and not held.

    Raises:
        BundleError: as ``read_external``.
    """
    path, offset, length = external_place(entries, folder)
    if not length:
        return np.zeros(0, dtype)
    # Mapped as bytes: an offset need not be a multiple of the element's size.
    return np.memmap(path, np.uint8, "r", offset, length).view(dtype)


def external_place(entries: Iterable[Entry], folder: Path) -> tuple[Path, int, int]:
    """The file of a tensor, and the offset and length in bytes of its values there.

    Raises:
        BundleError: the location is not a file in the graph's folder, the file is too short, or a number is none.
    """
    found = {entry.key: entry.value for entry in entries}
    location = found.get("location", "")
    if not location or Path(location).name != location or not location.isprintable():
        raise BundleError(
            f"weights of a graph in {folder} have the location {location!r}; only files in that folder are allowed"
        )
    path = folder / location
    try:
        size = path.stat().st_size if path.is_file() else -1
    except OSError:  # a name that is too long
        size = -1
    if size < 0:
        raise BundleError(f"{path} is missing, where weights of a graph are; copy the bundle again")
    offset = _bytes(found.get("offset") or "0", path)
    length = _bytes(found["length"], path) if found.get("length") else size - offset
    if offset > size or offset + length > size:
        raise BundleError(f"{path} ends before byte {offset + length}, where a weight does: copy the bundle again")
    return path, offset, length


def _bytes(text: str, path: Path) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= MOST_DIGITS):
        raise BundleError(
            f"weights of a graph are at {text[:40]!r} in {path}, which is no place; copy the bundle again"
        )
    return int(text)
