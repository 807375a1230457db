"""Values as callers write them: Python's and numpy's numbers, one subject or many; each is checked in one way."""

import math
import numbers
import operator
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from itertools import islice
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np

from bitdance_edge.runtime.errors import RequestError

SHOWN = 60  # characters of a refused value that its message repeats
MOST_ITEMS = 1_000_000  # of a sequence


def whole(name: str, value: object, least: int, most: int) -> int:
    """Read a whole number, of Python or numpy.

    Raises:
        RequestError: it is of another type (a bool too), or not from ``least`` to ``most``.
    """
    try:
        found = None if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        found = None
    if found is None or not least <= found <= most:
        raise RequestError(f"{name} is {shown(value)}; it must be a whole number from {least} to {most}")
    return found


def quoted(path: Path) -> str:
    """Write a path as a shell takes it, for the commands in messages."""
    return shlex.quote(str(path))


def counted(number: int, noun: str) -> str:
    """Write a number of things: ``1 image``, ``2,000 images``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def real(value: object) -> float:
    """Read a number as float; NaN where it is none, so that every comparison of a range fails."""
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value.item()
    if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Real):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.nan


def switch(name: str, value: object) -> bool:
    """Read True or False.

    Raises:
        RequestError: it is another value, such as "no" or 1.
    """
    if not isinstance(value, bool | np.bool_):
        raise RequestError(f"{name} is {shown(value)}; it must be True or False")
    return bool(value)


def one_of(name: str, value: object, allowed: Sequence[str]) -> str:
    """Check that a text is one of those allowed.

    Raises:
        RequestError: it is not.
    """
    if not isinstance(value, str) or value not in allowed:
        raise RequestError(f"{name} is {shown(value)}; it must be one of {', '.join(allowed)}")
    return value


def text(name: str, value: object) -> str:
    """Check a text.

    Raises:
        RequestError: it is no text, or has surrogates, which UTF-8 cannot hold.
    """
    if not isinstance(value, str):
        raise RequestError(f"{name} is {shown(value)}; it must be text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise RequestError(
            f"{name} is {shown(value)}, with {value[error.start]!r} at character {error.start + 1}, which is no text: "
            "decode it as UTF-8 before"
        ) from None
    return value


def items(name: str, values: object) -> tuple[Any, ...]:
    """Read one value or several, from any iterable with an order: text and numbers are one value, None is no value.

    Raises:
        RequestError: it has no order (a set) or is a mapping, bytes, an array of several dimensions, or too long.
    """
    if values is None:
        return ()
    if isinstance(values, str) or not isinstance(values, Iterable) or getattr(values, "ndim", 1) == 0:
        return (values,)
    if isinstance(values, Set | Mapping | bytes | bytearray) or getattr(values, "ndim", 1) > 1:
        raise RequestError(f"{name} is {shown(values)}; give one value, or a list of them")
    found = tuple(islice(values, MOST_ITEMS + 1))
    if len(found) > MOST_ITEMS:
        raise RequestError(f"{name} has more than {MOST_ITEMS:,} values; give fewer at once")
    return found


def file_path(name: str, value: object) -> Path:
    """Read the path of a file or folder.

    Raises:
        RequestError: it is neither text nor a path, or is empty.
    """
    if not isinstance(value, str | PathLike) or not (written := fspath(value)) or not isinstance(written, str):
        raise RequestError(f"{name} is {shown(value)}; it must be a path")
    try:
        Path(written).lstat()
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        pass  # what opens it says so
    except (OSError, ValueError) as error:  # a name that is too long, or has a null character
        raise RequestError(f"{name} is {shown(value)}, which is no path here: {error.args[-1]}") from None
    return Path(written)


def checked_pixels(values: Any) -> np.ndarray:
    """Read images as uint8 ``[B, H, W, 3]``; one image ``[H, W, 3]`` is a batch of one.

    Raises:
        RequestError: they are of another type or shape.
    """
    pixels = as_array("pixels", values, "as one array; give images of one size")
    pixels = pixels[None] if pixels.ndim == 3 else pixels
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] != 3:
        raise RequestError(f"pixels are {pixels.dtype} {list(pixels.shape)}; they must be uint8 [B, H, W, 3]")
    return pixels


def as_array(name: str, values: Any, remedy: str) -> np.ndarray:
    """Convert to an array.

    Raises:
        RequestError: numpy cannot: lists of different lengths, a range (which may be endless), a class of the caller.
    """
    try:
        if isinstance(values, range):
            raise TypeError
        return np.asarray(values)
    except Exception:
        raise RequestError(f"{name} cannot be read {remedy}") from None


def shown(value: object, write: Callable[[Any], str] = repr) -> str:
    """Show a refused value, shortened."""
    if isinstance(value, np.ndarray):
        return f"an array {value.dtype} {list(value.shape)}"
    try:
        written = write(value)
    except Exception:  # of an integer with more digits than Python converts, of a class of the caller any
        written = f"a {type(value).__name__} that cannot be shown"
    return written if len(written) <= SHOWN else f"{written[:SHOWN]}..."
