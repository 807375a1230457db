"""What the loop needs of a backend: memory, and stages bound to memory once and launched many times.

Launches, writes and fetches take effect in the order in which they are asked for. A backend may queue them and return
at once (a GPU), or do them before it returns (a CPU); ``run_ahead`` says how far the host may be in front.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import numpy as np

Launch = Callable[[], None]


class Pending(Protocol):
    """Values on their way to the host."""

    def done(self) -> bool: ...

    def wait(self) -> np.ndarray: ...


@dataclass(frozen=True)
class Arrived:
    """Values that are there already."""

    values: np.ndarray

    def done(self) -> bool:
        return True

    def wait(self) -> np.ndarray:
        return self.values


class Memory(Protocol):
    """Device memory at a fixed address, to be bound: of a whole tensor, or of a part of one."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def address(self) -> int: ...

    def __getitem__(self, index: int) -> "Memory":
        """The part at one index of the first axis."""
        ...


class Buffer(Memory, Protocol):
    """Device memory of one tensor, zero at first, and the host's way to it."""

    def write(self, values: np.ndarray) -> None:
        """Give the buffer these values, broadcast to its shape, for the launches that follow.

        Launches before still see the old ones; ``values`` may be changed at once.
        """
        ...

    def fetch(self) -> Pending:
        """A copy of what is in the buffer after the launches so far."""
        ...

    def read(self) -> np.ndarray:
        """The same, waited for."""
        ...

    def free(self) -> None:
        """Give the memory back; the buffer and its parts are not to be used again."""
        ...


@dataclass
class StageTime:
    """What the launches of one stage took, host clock; on a GPU that is what it takes to queue them."""

    launches: int = 0
    seconds: float = 0.0

    def add(self, seconds: float) -> None:
        self.launches += 1
        self.seconds += seconds


class Stage(Protocol):
    time: StageTime

    def bind(self, buffers: Mapping[str, Memory]) -> Launch:
        """Tie each input and output of the graph to the buffer of that name; the launch runs the graph once."""
        ...

    def close(self) -> None: ...


class Captured(Protocol):
    """Several launches as one."""

    def __call__(self) -> None: ...

    def close(self) -> None:
        """Give back what the device keeps for it; the buffers that it runs over may be freed afterwards."""
        ...


class Backend(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def run_ahead(self) -> int:
        """Patches that may be queued behind the one whose tokens are waited for."""
        ...

    def empty(self, shape: tuple[int, ...], dtype: str, *, ahead: bool = False) -> Buffer:
        """Memory of one tensor; ``ahead`` is for values written while the launches that read the old ones still run."""
        ...

    def load(self, stage: str) -> Stage:
        """Load a stage of the bundle after checking its files."""
        ...

    def capture(self, launches: Sequence[Launch]) -> Captured:
        """One launch that runs these in order, in a single call to the device where that is possible."""
        ...

    def second_lane(self) -> "Backend":
        """The same device for work that need not wait for the loop, nor the loop for it: decoding."""
        ...

    def current(self) -> AbstractContextManager[None]:
        """To be entered by the thread that is about to use the device."""
        ...

    def close(self) -> None:
        """Give back all that was taken from the device."""
        ...


@dataclass(frozen=True)
class InOrder:
    """Launches one after the other: what a captured sequence does where nothing is captured."""

    launches: Sequence[Launch]

    def __call__(self) -> None:
        for launch in self.launches:
            launch()

    def close(self) -> None:
        """There is nothing to give back."""
