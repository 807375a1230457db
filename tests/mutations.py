"""Mutations of JSON settings: each value dropped, or replaced by what a damaged or hostile file may hold there."""

import json
from collections.abc import Iterator
from typing import Any

DEEP = "[" * 40 + "]" * 40
# JSON text of each replacement, so that it may be what no Python value is written as.
REPLACEMENTS = (
    *("null", "true", "-1", "0", "0.5", "1000000", "1e30", "1e999", "NaN", "1" + "0" * 40, '"x"', '""', r'"\ud800"'),
    *("[]", "{}", "[-1]", "[1, 1, 1, 1]", '{"a": {"b": []}}', DEEP, '"../../x"'),
)
MARK = "\N{REPLACEMENT CHARACTER}"


def mutations(settings: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the place and the text of every mutated file."""
    for path in _places(settings, ()):
        place = ".".join(map(str, path))
        yield f"{place} dropped", json.dumps(_changed(settings, path, None))
        text = json.dumps(_changed(settings, path, MARK), ensure_ascii=False)
        for replacement in REPLACEMENTS:
            yield f"{place} = {replacement[:24]}", text.replace(f'"{MARK}"', replacement)
    text = json.dumps(settings)
    yield "a byte order mark", "\N{ZERO WIDTH NO-BREAK SPACE}" + text
    yield "the first key twice", "{" + text[1:].split(",", 1)[0] + ", " + text[1:]
    yield "cut", text[:-10]
    yield "a list", f"[{text}]"
    yield "deep", '{"a":' * 5000 + "1" + "}" * 5000
    yield "empty", ""
    yield "5,000 digits", '{"dim": ' + "9" * 5000 + "}"


def _places(value: Any, path: tuple[str | int, ...]) -> Iterator[tuple[str | int, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    for key, part in items:
        yield (*path, key)
        yield from _places(part, (*path, key))


def _changed(settings: dict[str, Any], path: tuple[str | int, ...], value: Any) -> Any:
    """A copy with one value replaced; None: without it."""
    copy = json.loads(json.dumps(settings))
    holder = copy
    for key in path[:-1]:
        holder = holder[key]
    if value is None:
        del holder[path[-1]]
    else:
        holder[path[-1]] = value
    return copy
