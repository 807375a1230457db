"""Every way in which one place of a JSON document can be wrong: dropped, of another type, out of range, hostile."""

import copy
import json
from collections.abc import Iterator
from typing import Any

NESTED = "[" * 40_000 + "]" * 40_000
# As text of JSON, which need not be valid: NaN, a key that stands twice, a lone surrogate.
VALUES = (
    "null",
    "true",
    "7",
    "-1",
    "1.5",
    str(2**62),
    "1" + "0" * 5000,
    "NaN",
    "-Infinity",
    "1e999",
    '""',
    '"text"',
    '"../../x"',
    '"/etc/passwd"',
    '"a\\u0000b"',
    '"\\ud800"',
    "[]",
    "{}",
    '{"a": 1, "a": 2}',
    NESTED,
)
PLACE = "\u2402"  # stands in for the value while the document is written; nothing else holds it


def mutations(document: Any, ends_only: bool = True) -> Iterator[tuple[str, bytes]]:
    """Yield a description and the bytes of each document with one place changed.

    Args:
        ends_only: change the first and the last item of a list, which stand for those between.
    """
    for path in _places(document, ends_only):
        *parents, last = path
        changed = copy.deepcopy(document)
        holder = changed
        for step in parents:
            holder = holder[step]
        whole = holder[last]
        holder[last] = PLACE
        text = json.dumps(changed, ensure_ascii=False)
        before, after = text.split(f'"{PLACE}"')
        named = ".".join(map(str, path))
        for value in VALUES:
            if value != json.dumps(whole):
                yield f"{named} = {value[:20]}", (before + value + after).encode()
        del holder[last]
        yield f"{named} dropped", json.dumps(changed).encode()


def spoilt_files(content: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield documents that are wrong as a whole."""
    text = content.decode()
    yield "empty", b""
    yield "half", content[: len(content) // 2]
    yield "UTF-16", text.encode("utf-16")
    yield "UTF-32", text.encode("utf-32")
    yield "bytes that are no text", b"\xff\xfe\xfd" + content
    yield "nested deep", NESTED.encode()
    yield "nested objects", b'{"a":' * 40_000
    yield "a list", b"[" + content + b"]"
    yield "giant", content + b" " * 5_000_000
    yield "many lists", b"[" + b"[]," * 1_300_000 + b"[]]"
    yield "twice", content.rstrip()[:-1] + b"," + content.lstrip()[1:]


def _places(value: Any, ends_only: bool, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    keys: list[Any] = []
    if isinstance(value, dict):
        keys = list(value)
    elif isinstance(value, list):
        keys = sorted({0, len(value) - 1}) if ends_only and value else list(range(len(value)))
    for key in keys:
        yield (*at, key)
        yield from _places(value[key], ends_only, (*at, key))
