"""Every way in which one place of a JSON document can be wrong, and some in which bytes can."""

import copy
import json
import random
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

NESTED = "[" * 40_000 + "]" * 40_000
# As JSON writes them, also what is not allowed there: NaN, a key that stands twice, half a surrogate pair.
VALUES = (
    "null",
    "true",
    "7",
    "-1",
    "1.5",
    str(2**62),
    "1" + "0" * 400,
    "NaN",
    "1e999",
    '""',
    '"text"',
    '"../../x"',
    '"/etc/passwd"',
    '"\\ud800"',
    "[]",
    '{"a": 1, "a": 2}',
)
PLACE = "\u2402"  # stands in for the value while the document is written; nothing else holds it
SHALLOW, SHALLOWEST = 3, 2  # steps down to a place


def mutations(
    document: Any, values: Sequence[str] = VALUES, deep: Sequence[str] | None = None, omit: Collection[str] = ()
) -> Iterator[tuple[str, bytes]]:
    """Yield a description and the bytes of each document with one place changed.

    The first and the last item of a list stand for those between.

    Args:
        values: what takes the place of each, as JSON text; at the first steps deep nesting too.
        deep: the same for places further down; None: ``values``.
        omit: keys below which nothing is changed.
    """
    for path in places(document):
        if set(path[:-1]) & set(omit):
            continue
        *parents, last = path
        changed = copy.deepcopy(document)
        holder = changed
        for step in parents:
            holder = holder[step]
        original, whole = holder[last], json.dumps(holder[last])
        holder[last] = PLACE
        before, after = json.dumps(changed, ensure_ascii=False).split(f'"{PLACE}"')
        place = ".".join(map(str, path))
        chosen = values if deep is None or len(path) <= SHALLOW else deep
        for value in (*chosen, NESTED) if len(path) <= SHALLOWEST else chosen:
            if value != whole and not (value == "1.5" and isinstance(original, float)):  # another number is no fault
                yield f"{place} = {value[:20]}", (before + value + after).encode()
        del holder[last]
        yield f"{place} dropped", json.dumps(changed).encode()


def some_mutations(content: bytes, number: int = 100) -> list[tuple[str, bytes]]:
    """Draw so many of a document's ``mutations``, the same each time, and add all that ``spoilt`` yields."""
    drawn = random.Random(number).sample(list(mutations(json.loads(content))), number)
    return [*drawn, *spoilt(content)]


def spoilt(content: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield documents that are wrong as a whole."""
    text = content.decode()
    yield "empty", b""
    yield "half", content[: len(content) // 2]
    yield "UTF-16", text.encode("utf-16")
    yield "UTF-32", text.encode("utf-32")
    yield "bytes that are no text", b"\xff\xfe\xfd" + content
    yield "nested lists", NESTED.encode()
    yield "nested objects", b'{"a":' * 40_000
    yield "a list", b"[" + content + b"]"
    yield "giant", content + b" " * 5_000_000
    yield "many lists", b"[" + b"[]," * 1_300_000 + b"[]]"
    yield "every key twice", content.rstrip()[:-1] + b"," + content.lstrip()[1:]


def damaged(content: bytes, number: int = 100) -> Iterator[bytes]:
    """Yield so many contents with some bytes changed, removed, added or doubled, or all behind a place cut off.

    The same each time.
    """
    draw = random.Random(len(content))
    for i in range(number):
        at, size = draw.randrange(len(content)), draw.randrange(1, 9)
        taken = content[at : at + size]
        other = {
            0: bytes(byte ^ 1 << draw.randrange(8) for byte in taken),
            1: b"",
            2: taken + draw.randbytes(size),
            3: 2 * taken,
        }
        yield content[:at] if i % 5 == 4 else content[:at] + other[i % 5] + content[at + size :]


def rewrite(path: Path, content: bytes) -> None:
    """Write a file anew. Where one is truncated instead, ext4 waits some milliseconds for the disk."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the way to each value of a document; of a list, to the first and the last."""
    keys: list[Any] = []
    if isinstance(value, dict):
        keys = list(value)
    elif isinstance(value, list) and value:
        keys = sorted({0, len(value) - 1})
    for key in keys:
        yield (*at, key)
        yield from places(value[key], (*at, key))
