"""What the loop needs of a backend: memory, and stages that are bound to memory once and launched many times.

Launches, writes and fetches take effect in the order of the calls. A backend may queue them and return at once (a GPU),
or do them before it returns (a CPU); ``run_ahead`` says how far the host may be ahead.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import numpy as np

Launch = Callable[[], None]


class Pending(Protocol):
    """Values on their way to the host."""

    def done(self) -> bool:
        """Whether ``wait`` would return at once."""
        ...

    def wait(self) -> np.ndarray:
        """Wait for the values; the array belongs to the caller."""
        ...


@dataclass(frozen=True)
class Arrived:
    """Values that have arrived."""

    values: np.ndarray

    def done(self) -> bool:
        return True

    def wait(self) -> np.ndarray:
        return self.values


class Memory(Protocol):
    """Device memory of a tensor, or of a part of one, at a fixed address, to be bound."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def address(self) -> int: ...

    @property
    def nbytes(self) -> int: ...

    def __getitem__(self, index: int) -> "Memory":
        """The part at one index of the first axis."""
        ...

    def reshaped(self, shape: tuple[int, ...]) -> "Memory":
        """The same memory as a tensor of another shape with as many values."""
        ...


class Buffer(Memory, Protocol):
    """Device memory of one tensor, zero at first, that the host can write and fetch."""

    def write(self, values: np.ndarray) -> None:
        """Set the values, broadcast to the buffer's shape, for the launches that follow.

        Earlier launches still see the old ones. The caller may change ``values`` as soon as this returns.
        """
        ...

    def fetch(self) -> Pending:
        """Start a copy of the buffer as it is after the launches so far."""
        ...

    def read(self) -> np.ndarray:
        """Fetch and wait."""
        ...

    def free(self) -> None:
        """Give the memory back; the buffer and its parts are not to be used again."""
        ...


@dataclass
class StageTime:
    """Launches of one stage and their seconds on the host's clock; on a GPU, the seconds that queueing them took."""

    launches: int = 0
    seconds: float = 0.0

    def add(self, seconds: float) -> None:
        self.launches += 1
        self.seconds += seconds


class Stage(Protocol):
    time: StageTime

    def bind(self, buffers: Mapping[str, Memory]) -> Launch:
        """Bind each input and output of the graph to the buffer of that name; the launch runs the graph once."""
        ...

    def close(self) -> None: ...


class Captured(Protocol):
    """Several launches as one."""

    def __call__(self) -> None: ...

    def close(self) -> None:
        """Free what the device keeps for it; the buffers that it runs over may be freed afterwards."""
        ...


class Backend(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def run_ahead(self) -> int:
        """The number of patches that may be queued behind the one whose tokens are waited for."""
        ...

    def empty(self, shape: tuple[int, ...], dtype: str, *, ahead: bool = False) -> Buffer:
        """Allocate one tensor; ``ahead``: new values are written while launches that read the old ones still run.

        Raises:
            OutOfMemoryError: the device has too little left.
        """
        ...

    def load(self, stage: str) -> Stage:
        """Load a stage of the bundle.

        Raises:
            BundleError: a file is missing or altered.
            BuildError: an engine does not fit the bundle or the device, or does not load.
        """
        ...

    def capture(self, launches: Sequence[Launch]) -> Captured:
        """Make one launch that runs these in order, in a single call to the device where that is possible."""
        ...

    def overwrite(self, target: Memory, source: Memory, rows: np.ndarray) -> Launch:
        """Make a launch that copies some rows of float32 ``source`` to the same rows of ``target``, of equal shape.

        Args:
            rows: which of them, bool over the first axes of both.
        """
        ...

    def second_lane(self) -> "Backend":
        """The same device for work that neither waits for the loop nor delays it: decoding."""
        ...

    def trim(self, stages: Iterable[Stage]) -> None:
        """Give back what stages keep for their activations from one launch to the next.

        To be called ahead of larger launches, while the buffers of the last ones still exist: they may run once more.
        """
        ...

    def current(self) -> AbstractContextManager[None]:
        """A context that a thread enters to use the device."""
        ...

    def close(self) -> None:
        """Free everything that was allocated on the device."""
        ...


@dataclass(frozen=True)
class InOrder:
    """Launches one after the other, where nothing is captured."""

    launches: Sequence[Launch]

    def __call__(self) -> None:
        for launch in self.launches:
            launch()

    def close(self) -> None:
        """There is nothing to free."""
