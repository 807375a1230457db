"""Reads the settings of one JSON file key by key; each error names the file, the key, its value and what is allowed."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from bitdance_edge.model.errors import ModelError

Built = TypeVar("Built")


def read_json(path: Path) -> dict[str, Any]:
    """Return the settings of a JSON file.

    Raises:
        ModelError: the file is missing, is not JSON, or does not hold an object.
    """
    if not path.is_file():
        raise ModelError(f"{path} is missing; the checkpoint is incomplete: copy it again")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path} is not JSON: {error}; copy it again") from None
    if not isinstance(content, dict):
        raise ModelError(f"{path} holds a {type(content).__name__}; it must hold an object with settings")
    return content


class Fields:
    """Settings of which each is taken once, with its type checked.

    Methods take a key and, for optional ones, a default; they raise ``ModelError`` where the key is missing or its
    value is not allowed. ``source`` is the file that errors name, ``prefix`` the entry inside it.
    """

    def __init__(self, values: Mapping[str, Any], source: str, prefix: str = "") -> None:
        self.left = dict(values)
        self.source = source
        self.prefix = prefix

    def integer(self, key: str, default: int | None = None) -> int:
        """Take a whole number of at least 1."""
        return self._take(key, default, _is_size, "a whole number from 1")

    def integers(self, key: str) -> tuple[int, ...]:
        """Take a list of at least one whole number, each at least 1."""
        return tuple(self._take(key, None, _is_list_of(_is_size), "a list of whole numbers from 1"))

    def number(self, key: str, default: float | None = None) -> float:
        """Take a finite number."""
        return float(self._take(key, default, _is_number, "a number"))

    def flag(self, key: str, default: bool) -> bool:
        return self._take(key, default, lambda value: isinstance(value, bool), "true or false")

    def text(self, key: str, default: str) -> str:
        """Take a text that is not blank."""
        return self._take(key, default, _is_text, "a text that is not empty")

    def texts(self, key: str) -> tuple[str, ...]:
        """Take a list of texts; empty where the key is missing."""
        if self.left.get(key) in ([], (), None):
            self.drop(key)
            return ()
        return tuple(self._take(key, None, _is_list_of(_is_text), "a list of texts"))

    def choice(self, key: str, allowed: Sequence[str], default: str | None = None) -> str:
        return self._take(key, default, lambda value: value in allowed, " or ".join(map(repr, allowed)))

    def pixel_sizes(self, key: str, default: Sequence[tuple[int, int]], multiple: int) -> tuple[tuple[int, int], ...]:
        """Take a list of [height, width], each a multiple of ``multiple`` pixels."""

        def is_size(value: Any) -> bool:
            return _is_list_of(_is_size)(value) and len(value) == 2 and not any(side % multiple for side in value)

        allowed = f"a list of [height, width] in multiples of {multiple} pixels"
        return tuple((height, width) for height, width in self._take(key, default, _is_list_of(is_size), allowed))

    def part(self, key: str, default: Mapping[str, Any] | None = None) -> "Fields":
        """Take an object of settings inside this one."""
        values = self._take(key, default, lambda value: isinstance(value, Mapping), "an object with settings")
        return Fields(values, self.source, f"{self.prefix}{key}.")

    def optional_part(self, key: str) -> "Fields | None":
        """As ``part``; None where the key is missing or null."""
        if self.left.get(key) is None:
            self.drop(key)
            return None
        return self.part(key)

    def only(self, key: str, supported: Any) -> None:
        """Require that ``key``, if present, has the one value that is supported."""
        if (value := self.left.pop(key, supported)) != supported:
            raise self.error(f"{self.prefix}{key} is {value!r}; only {supported!r} is supported")

    def drop(self, *keys: str) -> None:
        """Ignore keys that are allowed and not needed."""
        for key in keys:
            self.left.pop(key, None)

    def require_empty(self) -> None:
        """Refuse keys that nobody took: they are misspelled, or of another model."""
        if self.left:
            unknown = sorted(f"{self.prefix}{key}" for key in self.left)
            raise self.error(f"unknown keys {unknown}; remove them or correct their spelling")

    def build(self, kind: Callable[..., Built], **settings: Any) -> Built:
        """Make a ``kind`` of settings taken here; what it refuses is an error of this file."""
        try:
            return kind(**settings)
        except ModelError as error:
            raise self.error(str(error)) from None

    def error(self, complaint: str) -> ModelError:
        return ModelError(f"{self.source}: {complaint}")

    def _take(self, key: str, default: Any, holds: Callable[[Any], bool], allowed: str) -> Any:
        value = self.left.pop(key, default)
        if value is None and default is None:
            raise self.error(f"{self.prefix}{key} is missing; it must be {allowed}")
        if not holds(value):
            raise self.error(f"{self.prefix}{key} is {value!r}; it must be {allowed}")
        return value


def _is_size(value: Any) -> bool:
    return type(value) is int and value >= 1


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_list_of(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list | tuple) and len(value) > 0 and all(map(holds, value))
