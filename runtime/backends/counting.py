"""A backend that only counts the bytes a loop allocates: what the memory plan runs the loop over.

Values are dropped and launches do nothing, so that a patch costs what its Python costs. Memory belongs to the stage
that binds it first.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import numpy as np

from bitdance_edge.runtime.backends.interface import Arrived, InOrder, Launch, Memory, Stage, StageTime
from bitdance_edge.runtime.bundle.dtypes import tensor_bytes
from bitdance_edge.runtime.bundle.manifest import Bundle
from bitdance_edge.runtime.bundle.stage_names import StageName

CACHE = ("past_key_values.", "present.")  # how the names of the backbone's cache tensors start

Purpose = Literal["weights", "cache", "tensors"]


@dataclass(eq=False)
class CountedBuffer:
    """A tensor without memory, or a part of one."""

    shape: tuple[int, ...]
    bytes: int  # of the whole tensor, with what else the backend allocates for it
    address: int  # unlike that of any other tensor

    @property
    def nbytes(self) -> int:
        return self.bytes

    def __getitem__(self, index: int) -> "CountedBuffer":
        return CountedBuffer(self.shape[1:], self.bytes, self.address)

    def reshaped(self, shape: tuple[int, ...]) -> "CountedBuffer":
        return CountedBuffer(shape, self.bytes, self.address)

    def write(self, values: np.ndarray) -> None:
        """Drop the values."""

    def fetch(self) -> Arrived:
        return Arrived(self.read())

    def read(self) -> np.ndarray:
        return np.broadcast_to(np.zeros((), np.int8), self.shape)  # one byte, however large the shape

    def free(self) -> None:
        """There is nothing to free."""


class CountingBackend:
    """Counts what a backend that allocates each tensor once would take; ``bytes`` has them by (stage, purpose).

    Args:
        files: bytes of what is loaded in place of a stage's ONNX files, such as its engine.
        queued: whether work is queued, so that values written ahead first go to a landing buffer of the same size.
        in_place: whether the cache is updated in place; otherwise the new one is written to a second buffer.
    """

    name = "counting"
    run_ahead = 0

    def __init__(self, bundle: Bundle, files: Mapping[str, int], queued: bool, in_place: bool) -> None:
        self.bundle, self.files, self.queued, self.in_place = bundle, files, queued, in_place
        self.bytes: Counter[tuple[str, Purpose]] = Counter()
        self._allocated = 0
        self._counted: set[int] = set()  # addresses that a stage has bound

    def empty(self, shape: tuple[int, ...], dtype: str, *, ahead: bool = False) -> CountedBuffer:
        self._allocated += 1
        copies = 2 if ahead and self.queued else 1
        return CountedBuffer(shape, copies * tensor_bytes(shape, dtype), self._allocated)

    def load(self, stage: str) -> "CountedStage":
        self.bytes[stage, "weights"] += self.files.get(stage, self.bundle.stage(stage).bytes)
        return CountedStage(self, stage)

    def count(self, stage: str, tensor: str, memory: CountedBuffer) -> None:
        """Count a tensor that a stage binds, the first time that any stage does."""
        if memory.address in self._counted:
            return
        self._counted.add(memory.address)
        self.bytes[stage, "cache" if tensor.startswith(CACHE) else "tensors"] += memory.bytes

    def capture(self, launches: Sequence[Launch]) -> InOrder:
        return InOrder(launches)

    def overwrite(self, target: Memory, source: Memory, rows: np.ndarray) -> Launch:
        """Count the source as the head's, whose states are overwritten."""
        assert isinstance(source, CountedBuffer), "buffers of another backend"
        self.count(StageName.HEAD, "x_next", source)
        return nothing

    def second_lane(self) -> "CountingBackend":
        return self

    def trim(self, stages: Iterable[Stage]) -> None:
        """There is nothing to give back."""

    def current(self) -> AbstractContextManager[None]:
        return nullcontext()

    def close(self) -> None:
        """There is nothing to free."""


class CountedStage:
    """A stage that counts what is bound to it and computes nothing."""

    def __init__(self, backend: CountingBackend, name: str) -> None:
        self.backend, self.name, self.time = backend, name, StageTime()
        self._second: set[str] = set()  # outputs that were given a second buffer

    def bind(self, buffers: Mapping[str, Memory]) -> Launch:
        spec = self.backend.bundle.stage(self.name)
        for tensor, memory in buffers.items():
            assert isinstance(memory, CountedBuffer), "buffers of another backend"
            self.backend.count(self.name, tensor, memory)
        if not self.backend.in_place:
            read = {buffers[tensor.name].address for tensor in spec.inputs}
            for tensor in spec.outputs:
                if buffers[tensor.name].address in read and tensor.name not in self._second:
                    self._second.add(tensor.name)
                    second = self.backend.empty(buffers[tensor.name].shape, tensor.dtype)
                    self.backend.count(self.name, tensor.name, second)
        return nothing

    def close(self) -> None:
        """There is nothing to free."""


def nothing() -> None:
    """The launch of a counted stage."""
