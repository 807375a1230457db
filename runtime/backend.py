"""What the loop needs of a backend: memory, and stages bound to memory once and launched many times."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

Launch = Callable[[], None]


class Buffer(Protocol):
    """Device memory of one tensor at a fixed address."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, index: int) -> "Buffer":
        """The part of the buffer at one index of its first axis, sharing its memory."""
        ...

    def write(self, values: np.ndarray) -> None: ...

    def read(self) -> np.ndarray:
        """A copy on the host."""
        ...


@dataclass
class StageTime:
    """What the launches of one stage took, host clock."""

    launches: int = 0
    seconds: float = 0.0

    def add(self, seconds: float) -> None:
        self.launches += 1
        self.seconds += seconds


class Stage(Protocol):
    time: StageTime

    def bind(self, buffers: Mapping[str, Buffer]) -> Launch:
        """Tie each input and output of the graph to the buffer of that name; the launch runs the graph once."""
        ...

    def close(self) -> None: ...


class Backend(Protocol):
    name: str

    def empty(self, shape: tuple[int, ...], dtype: str) -> Buffer: ...

    def load(self, stage: str) -> Stage:
        """Load a stage of the bundle after checking its files."""
        ...
