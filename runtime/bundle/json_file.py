"""JSON that somebody else may have written: read within bounds, or refused in one line.

Beyond what ``json`` refuses: numbers that no other reader knows (NaN, Infinity, integers above 64 bits), a key that
stands twice, half a surrogate pair in a text, nesting and files so large that reading them costs memory or the stack.
"""

import codecs
import json
import math
from pathlib import Path
from typing import Any

from bitdance_edge.runtime.reading import opened_regular

MOST_BYTES = 4_000_000  # a manifest of the largest published model has 200 kB
MOST_NESTED = 64
MOST_INTEGER = 2**63 - 1
WIDE = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)


def read_json(path: Path, most_bytes: int = MOST_BYTES) -> tuple[Any, bytes]:
    """Read a file of JSON; returns its value and its bytes.

    Raises:
        ValueError: it is larger than ``most_bytes``, a pipe or device, or not JSON that is accepted here; the message
            says why.
        OSError: it cannot be read.
    """
    with opened_regular(path) as file:
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise ValueError(f"it has more than {most_bytes / 1e6:.0f} MB")
    return parse_json(content), content


def parse_json(content: bytes) -> Any:
    """Convert UTF-8 text, with or without a byte order mark, to its value.

    Raises:
        ValueError: it is not JSON that is accepted here; the message says why.
    """
    if content.startswith(WIDE) or b"\0" in content[:4]:
        raise ValueError("it is UTF-16 or UTF-32; save it as UTF-8")
    text = content.decode("utf-8-sig")
    try:
        value = json.loads(
            text,
            object_pairs_hook=_object,
            parse_constant=_refuse_constant,
            parse_int=_integer,
            parse_float=_finite,
        )
        _require_plain(value, 0)
    except RecursionError:
        raise ValueError(f"it is nested more than {MOST_NESTED} deep") from None
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"it holds {next(name for name in names if names.count(name) > 1)[:40]!r} twice")
    return value


def _refuse_constant(text: str) -> None:
    raise ValueError(f"it holds {text}, which is no number")


def _integer(text: str) -> int:
    if len(text) > len(str(MOST_INTEGER)) + 1 or abs(number := int(text)) > MOST_INTEGER:
        raise ValueError(f"it holds the number {text[:24]}{'...' * (len(text) > 24)}, which has more than 64 bits")
    return number


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"it holds the number {text[:24]}, which is too large")
    return number


def _require_plain(value: Any, depth: int) -> None:
    """Refuse deep nesting, and texts that no file can hold."""
    if isinstance(value, str):
        if not value.isascii():
            value.encode()  # raises UnicodeEncodeError, a ValueError, for half a surrogate pair
    elif isinstance(value, list | dict):
        if depth == MOST_NESTED:
            raise ValueError(f"it is nested more than {MOST_NESTED} deep")
        for item in (*value, *value.values()) if isinstance(value, dict) else value:
            _require_plain(item, depth + 1)
