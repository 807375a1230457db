"""What an engine reports while it makes shards; beside these, a ``Record`` for each shard that is made."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

from bitdance_edge.scale.records import Record


@dataclass(frozen=True)
class Added:
    """Images that were made; a negative number where a worker died and its shard is begun again."""

    images: int


@dataclass(frozen=True)
class Said:
    """A line for the user."""

    line: str


Event = Added | Said | Record
Engine = Callable[[Sequence[int]], Generator[Event, None, None]]  # makes the shards of these numbers, in any order
