"""JSON to dataclasses by the types of their fields; what is missing, unknown or not allowed there is refused.

Fields are numbers, texts, other dataclasses, ``tuple[X, ...]``, ``list[X]``, ``Mapping[K, V]``, ``X | None``,
``int | str``, and any of these ``Annotated`` with limits (``limits``). ``Any`` is JSON as it is.
"""

import functools
import math
import reprlib
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from bitdance_edge.runtime.bundle.limits import Limit
from bitdance_edge.runtime.errors import BundleError

Record = TypeVar("Record")
SCALARS = (int, float, str, bool)


def record(kind: type[Record], value: Any, at: str, given: Mapping[str, Any] | None = None) -> Record:
    """Build a dataclass from JSON.

    A field with a default may be missing: it was added later, and older bundles get the default.

    Args:
        at: the place of ``value``, for messages.
        given: fields that do not come from the JSON.

    Raises:
        BundleError: names the place, the value and what is expected.
    """
    if not isinstance(value, dict):
        raise BundleError(f"{at} is {type(value).__name__}; an object is expected")
    known = {field.name: field for field in fields(kind) if field.name not in (given or {})}  # type: ignore[arg-type]
    if missing := [name for name, field in known.items() if field.default is MISSING and name not in value]:
        raise BundleError(f"{at} lacks {', '.join(missing)}; export the bundle again")
    if unknown := sorted(value.keys() - known.keys()):
        raise BundleError(f"{at} holds unknown {_listed(unknown)}; it was written by another version")
    parsed = {name: parse(known[name].type, item, f"{at}.{name}") for name, item in value.items()}
    return kind(**parsed, **(given or {}))


def parse(kind: Any, value: Any, at: str) -> Any:
    """Convert a value of JSON to the type of a field; raises what ``record`` raises."""
    origin, arguments = _parts(kind)
    if origin is Annotated:
        parsed = parse(arguments[0], value, at)
        _require(arguments[1:], parsed, at)
        return parsed
    if origin in (Union, UnionType):
        return parse(_option(arguments, value), value, at)
    if origin in (tuple, list):
        if not isinstance(value, list):
            raise BundleError(f"{at} is {shown(value)}; a list is expected")
        return origin(parse(arguments[0], item, f"{at}[{i}]") for i, item in enumerate(value))
    if origin is Mapping:
        if not isinstance(value, dict):
            raise BundleError(f"{at} is {shown(value)}; an object is expected")
        key, item = arguments
        return {
            parse(key, name, f"a key of {at}"): parse(item, each, f"{at}.{plain(name)}") for name, each in value.items()
        }
    if is_dataclass(kind):
        return record(kind, value, at)  # type: ignore[arg-type]
    return value if kind is Any else _scalar(kind, value, at)


def shown(value: Any) -> str:
    """A value as messages show it: on one line, and not all of a long one."""
    return reprlib.repr(value)


def _option(arguments: tuple[Any, ...], value: Any) -> Any:
    """The option of a union that a value is of, or else the first."""
    if value is None:
        return type(None) if type(None) in arguments else arguments[0]
    options = [option for option in arguments if option is not type(None)]
    return next((option for option in options if _base(option) is type(value)), options[0])


@functools.cache
def _parts(kind: Any) -> tuple[Any, tuple[Any, ...]]:
    return get_origin(kind), get_args(kind)


def _base(kind: Any) -> Any:
    origin, arguments = _parts(kind)
    return arguments[0] if origin is Annotated else kind


def _scalar(kind: type, value: Any, at: str) -> Any:
    if kind is type(None):
        return None
    assert kind in SCALARS, f"{at}: a schema has no fields of type {kind}"
    if kind is float and type(value) in (int, float) and math.isfinite(value):
        return float(value)
    if type(value) is not kind or kind is float:
        raise BundleError(f"{at} is {shown(value)}; {kind.__name__} is expected")
    return value


def _require(limits: tuple[Limit, ...], value: Any, at: str) -> None:
    for limit in limits:
        if (allowed := limit.broken(value)) is not None:
            raise BundleError(f"{at} is {shown(value)}; {allowed}")


def _listed(names: list[str]) -> str:
    return ", ".join(map(plain, names))


def plain(name: str) -> str:
    """A key as messages show it: unquoted, on one line."""
    return shown(name)[1:-1]
