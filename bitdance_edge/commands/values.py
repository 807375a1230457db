"""The values of flags: each type reads one kind for argparse, or says in one line what is allowed."""

import math
import re
import sys
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterable
from pathlib import Path

SHOWN = 40  # characters of a refused value that its message repeats
MOST = 2**31 - 1  # of a whole number that nothing else limits: it fits C's int
MOST_PATH = 4096  # characters of a path, as on Linux
WHOLE = re.compile(r"[+-]?[0-9]{1,40}")  # int() would also take 1_000 and digits of other scripts
DECIMAL = re.compile(r"[+-]?(?=[.0-9])[0-9]{0,40}(?:\.[0-9]{0,40})?(?:[eE][+-]?[0-9]{1,5})?")


def whole(least: int, most: int = MOST) -> Callable[[str], int]:
    """Make the type of a whole number from ``least`` to ``most``, in decimal digits."""

    def read(value: str) -> int:
        found = int(value) if WHOLE.fullmatch(value.strip()) else None
        if found is None or not least <= found <= most:
            raise ArgumentTypeError(f"{shown(value)} is not a whole number from {least} to {most}")
        return found

    return read


def whole_or(word: str, least: int, most: int) -> Callable[[str], int | str]:
    """Make the type of a whole number from ``least`` to ``most``, or of one word."""
    read = whole(least, most)

    def read_either(value: str) -> int | str:
        try:
            return word if value.strip() == word else read(value)
        except ArgumentTypeError as error:
            raise ArgumentTypeError(f"{error}, nor {word}") from None

    return read_either


def number(least: float, most: float, *, unit: str = "") -> Callable[[str], float]:
    """Make the type of a finite number from ``least`` to ``most``; ``unit`` is named where it is refused."""

    def read(value: str) -> float:
        found = float(value) if DECIMAL.fullmatch(value.strip()) else math.nan
        if not least <= found <= most:
            raise ArgumentTypeError(f"{shown(value)} is not a number{unit} from {least:g} to {most:g}")
        return found

    return read


def percentage(value: str) -> float:
    """Read ``2%`` or ``2`` as 0.02."""
    digits = value.strip().removesuffix("%")
    found = float(digits) / 100 if DECIMAL.fullmatch(digits) else math.nan
    if not 0 <= found <= 1:
        raise ArgumentTypeError(f"{shown(value)} is not a percentage from 0% to 100%; write for example 0.5%")
    return found


def whole_list(least: int, most: int = MOST) -> Callable[[str], list[int]]:
    """Make the type of comma-separated whole numbers, each kept once, in the order given."""
    read = whole(least, most)
    return lambda value: list(dict.fromkeys(read(part) for part in value.split(",")))


def path(value: str) -> Path:
    """Read the path of a file or folder; refuses an empty one, as of an unset shell variable, and an endless one."""
    if not value:
        raise ArgumentTypeError("the path is empty; give a file or folder")
    if len(value) > MOST_PATH:
        raise ArgumentTypeError(f"{shown(value)} is no path here: the limit is {MOST_PATH:,} characters")
    return Path(value)


def prompt_file(value: str) -> list[str]:
    """Read the prompts of a text file, one a line, from standard input where it is ``-``; empty lines are skipped."""
    from bitdance_edge.runtime.reading import MOST_TEXT, RequestError, decoded_text, read_text

    try:
        if value == "-":
            content = sys.stdin.buffer.read(MOST_TEXT + 1)
            if len(content) > MOST_TEXT:
                raise ArgumentTypeError(f"standard input has more than {MOST_TEXT:,} bytes; give fewer prompts at once")
            lines = decoded_text(content, "standard input").splitlines()
        else:
            lines = read_text(path(value), "file of prompts").splitlines()
    except RequestError as error:
        raise ArgumentTypeError(str(error)) from None
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise ArgumentTypeError(f"{value!r} holds no prompt; write one a line")
    return prompts


def text(value: str) -> str:
    """Read text, such as a prompt, which must be encoded as the terminal's locale says."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ArgumentTypeError(
            f"{shown(value)} has bytes at character {error.start + 1} that are no text in this locale; "
            "write it in UTF-8, and run in a UTF-8 locale"
        ) from None
    return value


def flags(names: Iterable[str]) -> str:
    """List the flags that arguments of these names have, for a message."""
    return ", ".join(f"--{name.replace('_', '-')}" for name in names)


def shown(value: str) -> str:
    """Quote a refused value for a message, shortened."""
    return repr(value) if len(value) <= SHOWN else f"{value[:SHOWN]!r}... ({len(value)} characters)"
