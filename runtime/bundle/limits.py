"""What a value read from a file may be, beside its type: put on a field as ``Annotated[int, Within(1, 8)]``."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Annotated, Any, Protocol

MOST_TEXT = 100_000  # characters


class Limit(Protocol):
    """A condition on a value that has the right type."""

    def broken(self, value: Any) -> str | None:
        """What is allowed, if ``value`` is not."""
        ...


@dataclass(frozen=True)
class Within:
    """A number in a range, ends included."""

    least: float
    most: float

    def broken(self, value: float) -> str | None:
        return None if self.least <= value <= self.most else f"it must be from {self.least} to {self.most}"


@dataclass(frozen=True)
class OneOf:
    """One of a few texts."""

    allowed: Iterable[str]

    def broken(self, value: str) -> str | None:
        return None if value in tuple(self.allowed) else f"it must be one of {', '.join(self.allowed)}"


@dataclass(frozen=True)
class Like:
    """A text that a regular expression matches from its first to its last character."""

    pattern: str
    meaning: str  # of the pattern, for messages

    def broken(self, value: str) -> str | None:
        return None if re.fullmatch(self.pattern, value) else f"{self.meaning} is expected"


@dataclass(frozen=True)
class Items:
    """A text, list or object with so many characters or items."""

    least: int
    most: int

    def broken(self, value: Any) -> str | None:
        size = len(value)
        return None if self.least <= size <= self.most else f"its length must be from {self.least} to {self.most}"


class InFolder:
    """A path of a file below the folder of the file that names it: relative, with forward slashes, on any system."""

    def broken(self, value: str) -> str | None:
        path = PurePosixPath(value)
        plain = str(path) == value and not path.is_absolute() and value.isprintable() and len(value) <= 1000
        if plain and path.parts and ".." not in path.parts and not set(value) & set('\\:*?"<>|'):
            return None
        return "a bundle names only files inside itself"


Bytes = Annotated[int, Within(0, 2**48)]
Count = Annotated[int, Within(1, 2**24)]
Quantity = Annotated[int, Within(0, 2**24)]  # that may be none
Text = Annotated[str, Items(0, MOST_TEXT)]
Sha256 = Annotated[str, Like(r"[0-9a-f]{64}", "64 hexadecimal digits")]
FilePath = Annotated[str, InFolder()]
FileName = Annotated[str, InFolder(), Like(r"[^/]*", "a file in the same folder")]
Name = Annotated[str, Like(r"[^/\\\x00-\x1f\x7f]{1,255}", "a name without slashes, of at most 255 characters")]
NotNegative = Annotated[float, Within(0, 1e12)]
