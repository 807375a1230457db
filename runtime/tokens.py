"""Binary tokens that come from outside: arrays of callers, and ``.npy`` files."""

import io
import math
import os
from pathlib import Path
from typing import BinaryIO

import numpy as np

from bitdance_edge.runtime.errors import RequestError
from bitdance_edge.runtime.reading import open_regular
from bitdance_edge.runtime.values import as_array, shown

MAGIC, ARCHIVE = b"\x93NUMPY", b"PK"  # first bytes of .npy and .npz files
MOST_BYTES = 200_000_000  # of a file
MOST_HEADER = 16_384  # bytes; numpy writes some hundred
AT_ONCE = 2**20  # elements looked at together
REAL_KINDS = "iuf"  # dtype.kind of integers and floating point
REMEDY = "make them with: bitdance-edge tokenize"


def checked_tokens(name: str, values: object, *, undrawn: bool = False) -> np.ndarray:
    """Read tokens ``[K, C]`` or ``[B, K, C]`` of -1 and +1 of any real type, or nested lists, as int8 of that shape.

    Args:
        undrawn: allow tokens whose values are all 0: those that are not drawn yet.

    Raises:
        RequestError: they have another type, number of dimensions, or values.
    """
    tokens = as_array(name, values, "as an array; give tokens [K, C] or [B, K, C]")
    if tokens.dtype.kind not in REAL_KINDS or tokens.ndim not in (2, 3):
        raise RequestError(
            f"{name} is an array {tokens.dtype} {list(tokens.shape)}; it must be numbers [K, C] or [B, K, C]"
        )
    drawn = tokens[(tokens != 0).any(axis=-1)] if undrawn else tokens
    if not _consists_of(drawn, (-1, 1)):
        hint = "; take them from Pipeline.tokenize"
        if _consists_of(drawn, (0, 1)):
            hint = ": they are 0 and 1, so give 2 * tokens - 1"
        raise RequestError(f"{name} has values other than -1 and +1{hint}")
    return tokens.astype(np.int8, copy=False)


def _consists_of(array: np.ndarray, values: tuple[int, int]) -> bool:
    """Whether every element is one of two values; looks at parts, so that little memory is taken beside a large one."""
    flat = array.ravel(order="K")
    return all(np.isin(flat[i : i + AT_ONCE], values).all() for i in range(0, flat.size, AT_ONCE))


def holds_tokens(path: Path) -> bool:
    """Whether a file is meant as tokens: by its content, or by its name where it cannot be read."""
    try:
        with open_regular(path, "file", MOST_BYTES) as file:
            start = file.read(len(MAGIC))
    except RequestError:
        start = b""
    return start == MAGIC or path.suffix.lower() in (".npy", ".npz")


def read_tokens(path: Path) -> np.ndarray:
    """Read tokens from a ``.npy`` file, int8 ``[K, C]`` or ``[B, K, C]`` of -1 and +1.

    Raises:
        RequestError: the file is missing or damaged, claims another size than it has, or holds no tokens.
    """
    with open_regular(path, "tokens", MOST_BYTES) as file:
        start = file.read(len(MAGIC))
        if start.startswith(ARCHIVE):
            raise RequestError(f"{path} is a .npz archive; save one array of tokens with numpy.save")
        if start != MAGIC:
            raise RequestError(f"{path} is not a .npy file; {REMEDY}")
        file.seek(0)
        _require_size(file, path)
        try:
            array = np.load(file, allow_pickle=False)
        except (OSError, ValueError, EOFError, TypeError) as error:
            raise RequestError(f"{path} cannot be read as tokens ({error}); {REMEDY}") from None
    return checked_tokens(str(path), array)


def _require_size(file: BinaryIO, path: Path) -> None:
    """Compare the header of a ``.npy`` file with the number of bytes that follow, before an array is allocated."""
    start = io.BytesIO(file.read(MOST_HEADER))
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    try:
        version = np.lib.format.read_magic(start)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(start)
    except Exception as error:  # the header is a Python literal, for which numpy raises what its parser raises
        raise RequestError(f"{path} has a damaged header ({str(error)[:100]}); {REMEDY}") from None
    if dtype.kind not in REAL_KINDS:
        raise RequestError(f"{path} holds values of type {dtype}; tokens are numbers, -1 and +1")
    follow = size - start.tell()
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != follow:
        raise RequestError(
            f"{path} has {follow:,} bytes of values, and its header says an array of {dtype} of shape "
            f"{shown(list(shape))}; it may be truncated: {REMEDY}"
        )
