"""The values of a recipe file by their types, before a recipe is made of them."""

import math
from collections.abc import Callable, Mapping
from typing import Any

MOST_IMAGES = 1_000_000
MOST_SEED = 2**62  # seeds of held-out images follow


def recipe_values(values: Any) -> dict[str, Any]:
    """Check the values of a recipe's JSON; entries that are not known here are left to the reader.

    Raises:
        ValueError: an entry has a value of another type or range; the message names it.
    """
    if not isinstance(values, dict) or not isinstance(values.get("draw"), dict):
        raise ValueError("it has no draw")
    _require(values, RECIPE, "")
    _require(values["draw"], DRAW, "draw.")
    return values


def _require(values: Mapping[str, Any], kinds: Mapping[str, Callable[[Any], bool]], prefix: str) -> None:
    for name, holds in kinds.items():
        if name in values and not holds(values[name]):
            raise ValueError(f"{prefix}{name} is {repr(values[name])[:60]}")


def _number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= 1e6 and math.isfinite(value)


def _text(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= 100_000


def _whole(least: int, most: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and least <= value <= most


def _or_null(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or holds(value)


def _list_of(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and len(value) <= MOST_IMAGES and all(map(holds, value))


def _size(value: Any) -> bool:
    """Whether a value is an object of width and height, or a list of two sides, as in format 1."""
    if isinstance(value, dict):
        return value.keys() == {"width", "height"} and all(map(_whole(1, 65_536), value.values()))
    return isinstance(value, list) and len(value) == 2 and all(map(_whole(1, 65_536), value))


DRAW: dict[str, Callable[[Any], bool]] = {
    "images": _whole(1, MOST_IMAGES),
    "seed": _whole(0, MOST_SEED),
    "classes": _list_of(lambda value: _text(value) or _whole(0, 10**9)(value)),
    "prompts": _list_of(_text),
    "size": _or_null(_size),
    "patches": _or_null(_whole(1, 10**6)),
    "steps": _or_null(_whole(1, 1000)),
    "guidance": _or_null(_number),
}
RECIPE: dict[str, Callable[[Any], bool]] = {
    "format": _whole(1, 1000),
    "precisions": lambda value: isinstance(value, dict) and all(map(_text, (*value, *value.values()))),
    "calibrator": _text,
    "percentile": _number,
    "smooth": _or_null(_number),
    "weigh_times": lambda value: isinstance(value, bool),
    "kept": _list_of(_text),
    "max_bit_flips": _or_null(_number),
    "feedback": lambda value: isinstance(value, bool),
    "weights_only": lambda value: isinstance(value, bool),
}
