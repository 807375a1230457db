"""Files that a user names: regular files of bounded size, whatever else a path may lead to; text is UTF-8."""

import os
import stat
from pathlib import Path
from typing import BinaryIO

from bitdance_edge.runtime.errors import RequestError
from bitdance_edge.runtime.values import shown

MOST_TEXT = 16 * 2**20  # bytes of a text file
NO_WAITING = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)  # the first for pipes, the second on Windows


def open_regular(path: str | Path, what: str, most: int) -> BinaryIO:
    """Open a regular file of at most ``most`` bytes for reading; pipes and devices are refused without waiting.

    Args:
        what: the file holds, for messages: "image".

    Raises:
        RequestError: the path is none, or leads to no such file, or the file cannot be opened or is too large.
    """
    try:
        file = opened_regular(path)
    except NotRegularError:
        raise RequestError(f"{path} is a pipe, device or socket; give a regular file") from None
    except FileNotFoundError:
        raise RequestError(f"no {what} at {path}") from None
    except IsADirectoryError:
        raise RequestError(f"{path} is a folder; give a file") from None
    except (OSError, TypeError, ValueError) as error:  # the latter two: not a path, or one with a null character
        reason = error.strerror if isinstance(error, OSError) else error
        raise RequestError(f"{shown(path)} cannot be opened: {reason}; give the path of a file") from None
    if (size := os.fstat(file.fileno()).st_size) > most:
        file.close()
        raise RequestError(f"{path} has {size:,} bytes; the limit is {most:,}")
    return file


class NotRegularError(ValueError):
    """What a path leads to is no regular file."""


def opened_regular(path: str | Path) -> BinaryIO:
    """Open a regular file for reading; pipes and devices are refused without waiting.

    Raises:
        OSError: it cannot be opened, or is a folder.
        NotRegularError: it is a pipe, device or socket.
        TypeError, ValueError: it is no path.
    """
    file = os.fdopen(os.open(os.fspath(path), os.O_RDONLY | NO_WAITING), "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise NotRegularError("it is a pipe, device or socket")
    return file


def read_text(path: str | Path, what: str) -> str:
    """Read a file of UTF-8 text, with or without a byte order mark.

    Raises:
        RequestError: as ``open_regular``, or the file is not UTF-8; the message names the place.
    """
    with open_regular(path, what, MOST_TEXT) as file:
        return decoded_text(file.read(), str(path))


def decoded_text(content: bytes, name: str) -> str:
    """Decode UTF-8, with or without a byte order mark.

    Raises:
        RequestError: it is no UTF-8; the message names the place in what ``name`` says.
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise RequestError(
            f"{name} is not UTF-8: byte {content[error.start]:#04x} in line {line} (offset {error.start}); save it in "
            "UTF-8"
        ) from None
