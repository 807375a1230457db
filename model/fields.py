"""Reads the settings of one JSON file key by key; each error names the file, the key, its value and what is allowed."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from bitdance_edge.model.errors import ModelError
from bitdance_edge.model.json_file import shown

Built = TypeVar("Built")
LARGEST_SIZE = 65_536  # of a width; nothing is allocated by a setting that no model could have
LARGEST_COUNT = 1_000_000  # of a list
LARGEST_NUMBER = 1e6


class Fields:
    """Settings of which each is taken once, with its type checked.

    Methods take a key and, for optional ones, a default; they raise ``ModelError`` where the key is missing or its
    value is not allowed. ``source`` is the file that errors name, ``prefix`` the entry inside it.
    """

    def __init__(self, values: Mapping[str, Any], source: str, prefix: str = "") -> None:
        self.left = dict(values)
        self.source = source
        self.prefix = prefix

    def integer(self, key: str, default: int | None = None, *, most: int = LARGEST_SIZE) -> int:
        """Take a whole number from 1 to ``most``."""
        return self._take(key, default, _is_size(most), f"a whole number from 1 to {most}")

    def integers(self, key: str, *, most: int = LARGEST_SIZE, count: int = LARGEST_SIZE) -> tuple[int, ...]:
        """Take a list of 1 to ``count`` whole numbers, each from 1 to ``most``."""
        allowed = f"a list of at most {count} whole numbers from 1 to {most}"
        return tuple(self._take(key, None, _is_list_of(_is_size(most), count), allowed))

    def number(
        self, key: str, default: float | None = None, *, least: float = -LARGEST_NUMBER, most: float = LARGEST_NUMBER
    ) -> float:
        """Take a number from ``least`` to ``most``."""
        allowed = f"a number from {least:g} to {most:g}"
        return float(self._take(key, default, lambda value: _is_number(value) and least <= value <= most, allowed))

    def positive(self, key: str, default: float | None = None, *, most: float = LARGEST_NUMBER) -> float:
        """Take a number above 0, up to ``most``."""
        allowed = f"a number above 0, up to {most:g}"
        return float(self._take(key, default, lambda value: _is_number(value) and 0 < value <= most, allowed))

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

    def pixel_sizes(
        self, key: str, default: Sequence[tuple[int, int]], *, multiple: int, most: int
    ) -> tuple[tuple[int, int], ...]:
        """Take a list of [height, width], each a multiple of ``multiple`` pixels and at most ``most``."""

        def is_size(value: Any) -> bool:
            return _is_list_of(_is_size(most), 2)(value) and len(value) == 2 and not any(n % multiple for n in value)

        allowed = f"a list of [height, width] in multiples of {multiple} pixels, up to {most}"
        taken = self._take(key, default, _is_list_of(is_size), allowed)
        return tuple((height, width) for height, width in taken)

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
        value = self.left.pop(key, supported)
        if value != supported or type(value) is not type(supported):
            raise self.error(f"{self.prefix}{key} is {shown(value)}; only {supported!r} is supported")

    def drop(self, *keys: str) -> None:
        """Ignore keys that are allowed and not needed."""
        for key in keys:
            self.left.pop(key, None)

    def require_empty(self) -> None:
        """Refuse keys that nobody took: they are misspelled, or of another model."""
        if self.left:
            unknown = sorted(f"{self.prefix}{key}" for key in self.left)
            raise self.error(f"unknown keys {shown(unknown)}; remove them or correct their spelling")

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
            raise self.error(f"{self.prefix}{key} is {shown(value)}; it must be {allowed}")
        return value


def _is_size(most: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and 1 <= value <= most


def _is_number(value: Any) -> bool:
    return type(value) is int or (type(value) is float and math.isfinite(value))


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_list_of(holds: Callable[[Any], bool], count: int = LARGEST_COUNT) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list | tuple) and 0 < len(value) <= count and all(map(holds, value))
