"""Reads JSON files of settings, refusing what JSON leaves open: repeated keys, NaN, lone surrogates, deep nesting."""

import json
import math
from pathlib import Path
from typing import Any, NoReturn

from bitdance_edge.model.errors import ModelError
from bitdance_edge.model.placeholder import require_content

LARGEST = 8_000_000  # bytes; the index of a model of 1,000 layers has a tenth of that
DEEPEST = 64  # objects and lists inside each other
SHOWN = 80  # characters of a value in an error


def read_json(path: Path) -> dict[str, Any]:
    """Return the settings of a JSON file in UTF-8; a byte order mark is skipped.

    Raises:
        ModelError: the file is missing, is not JSON, does not hold an object, or holds a key twice, a number that is
            not finite, text that is not Unicode, or more than ``DEEPEST`` levels.
    """
    require_content(path)
    if (size := path.stat().st_size) > LARGEST:
        raise ModelError(f"{path} has {size} bytes; a file of settings has at most {LARGEST}: copy it again")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}; check its permissions") from None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ModelError(
            f"{path} is not UTF-8 text: byte {content[error.start]:#04x} at {error.start}; save it as UTF-8"
        ) from None
    try:
        found = json.loads(text, object_pairs_hook=_object, parse_constant=_not_finite, parse_float=_finite)
    except RecursionError:
        raise ModelError(f"{path} is nested more than {DEEPEST} levels deep; copy it again") from None
    except ValueError as error:
        raise ModelError(f"{path} is not JSON: {error}; copy it again") from None
    if not isinstance(found, dict):
        raise ModelError(f"{path} holds a {type(found).__name__}; it must hold an object with settings")
    _require_plain(found, path, "", 1)
    return found


def shown(value: Any) -> str:
    """Return a value as an error shows it: in Python's notation, cut where it is long."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"key {shown(key)} is there twice")
        found[key] = value
    return found


def _not_finite(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a number of JSON")


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{shown(text)} is too large for a number")
    return number


def _require_plain(value: Any, path: Path, place: str, depth: int) -> None:
    if depth > DEEPEST:
        raise ModelError(f"{path} is nested more than {DEEPEST} levels deep; copy it again")
    if isinstance(value, str):
        _require_unicode(value, path, place)
    elif isinstance(value, dict):
        for key, part in value.items():
            _require_unicode(key, path, place)
            _require_plain(part, path, f"{place}.{key}".lstrip("."), depth + 1)
    elif isinstance(value, list):
        for i, part in enumerate(value):
            _require_plain(part, path, f"{place}[{i}]", depth + 1)


def _require_unicode(text: str, path: Path, place: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise ModelError(
            f"{path}: {place or 'a key'} holds {shown(text)}, half of a surrogate pair; write the character itself"
        ) from None
