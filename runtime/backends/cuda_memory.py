"""Tensors of a GPU at fixed addresses: buffers, the lane of work that they belong to, and its arena for activations."""

import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from bitdance_edge.runtime.backends.cuda_device import CudaDevice
from bitdance_edge.runtime.backends.cuda_driver import DriverDevice
from bitdance_edge.runtime.bundle.dtypes import tensor_bytes
from bitdance_edge.runtime.errors import BackendError

ALIGNMENT = 256  # of the memory that a TensorRT context is given for its activations


class Arena:
    """One allocation that all execution contexts of a lane use in turn for their activations.

    It grows to the largest need. Its address is valid as long as ``generation`` is unchanged.
    """

    def __init__(self, device: CudaDevice | DriverDevice) -> None:
        self.device = device
        self.size = self.generation = 0
        self.address = 0

    def reserve(self, size: int, synchronize: Callable[[], None]) -> None:
        """Make room for ``size`` bytes; ``synchronize`` waits for launches that use the present memory."""
        if size <= self.size:
            return
        synchronize()
        self.free()
        size = -(-size // ALIGNMENT) * ALIGNMENT
        self.address, self.size = self.device.allocate(size), size
        self.generation += 1

    def free(self) -> None:
        if self.size:
            self.device.release(self.address)
        self.size = 0


class Lane:
    """A stream with its arena: work on one lane is done in the order in which it is queued.

    Large values that are replaced while they are read arrive on a stream of their own.
    """

    def __init__(self, device: CudaDevice | DriverDevice) -> None:
        self.device = device
        self.stream: Any = device.stream()
        self.arrivals: Any = device.stream()
        self.arena = Arena(device)
        self.buffers: weakref.WeakSet[CudaBuffer] = weakref.WeakSet()

    def synchronize(self) -> None:
        self.arrivals.synchronize()
        self.stream.synchronize()

    def close(self) -> None:
        """Free everything, even if a buffer, a result or this lane is still referenced."""
        self.synchronize()
        self.arena.free()
        for buffer in list(self.buffers):
            buffer.free()
        self.stream = self.arrivals = None


class Slot:
    """Pinned host memory for one copy at a time, and the event that marks its end."""

    def __init__(self, lane: Lane, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self.array: Any = lane.device.pinned(shape, dtype)
        self.copied: Any = lane.device.event()
        self.used = False

    def wait(self) -> None:
        if self.used:
            self.copied.synchronize()

    def mark(self, stream: Any) -> None:
        self.copied.record(stream)
        self.used = True

    def free(self) -> None:
        """Drop what PyCUDA can free only while the context is current."""
        self.array = self.copied = None


class Fetched:
    """Values being copied to a slot, which is free again once they are taken, or this is no longer referenced."""

    def __init__(self, slot: Slot, free: list[Slot]) -> None:
        self.slot = slot
        self._values: np.ndarray | None = None
        self._release = weakref.finalize(self, free.append, slot)
        self._release.atexit = False

    def done(self) -> bool:
        return self._values is not None or self.slot.copied.query()

    def wait(self) -> np.ndarray:
        if self._values is not None:
            return self._values
        self.slot.wait()
        values = self._values = self.slot.array.copy()
        self._release()
        return values


class CudaBuffer:
    """A tensor in device memory, written and fetched by way of pinned host memory.

    With ``ahead``, new values first go to a landing buffer, which they reach while launches that read the old ones
    still run; from there they are copied within the device, in order with the launches.
    """

    def __init__(self, lane: Lane, shape: tuple[int, ...], dtype: str, ahead: bool) -> None:
        self.lane, self.shape, self.dtype = lane, shape, dtype
        self.size = tensor_bytes(shape, dtype)
        self.address = lane.device.allocate(self.size)
        self.landing = 0
        self._landed: Any = lane.device.event() if ahead else None
        self._taken: Any = lane.device.event() if ahead else None
        self._slots: list[Slot] = []  # all of them
        self._writing: list[Slot] = []  # in turn
        self._fetching: list[Slot] = []  # free ones
        self._fetched: weakref.WeakSet[Fetched] = weakref.WeakSet()
        lane.buffers.add(self)
        if ahead:
            try:
                self.landing = lane.device.allocate(self.size)
            except BackendError:
                self.free()
                raise
        lane.device.zero(self.address, self.size, lane.stream)

    @property
    def nbytes(self) -> int:
        return self.size

    @property
    def freed(self) -> bool:
        return not self.address

    def __getitem__(self, index: int) -> "CudaPart":
        return CudaPart(self, self.shape[1:], self.address + index * (self.size // self.shape[0]))

    def reshaped(self, shape: tuple[int, ...]) -> "CudaPart":
        return CudaPart(self, shape, self.address)

    def write(self, values: np.ndarray) -> None:
        slot = self._slot_to_write()
        slot.array[...] = values
        device, stream = self.lane.device, self.lane.stream
        if not self.landing:
            device.upload(self.address, slot.array, stream)
            slot.mark(stream)
            return
        arrivals = self.lane.arrivals
        device.upload(self.landing, slot.array, arrivals)
        slot.mark(arrivals)
        stream.wait_for_event(self._landed.record(arrivals))
        device.copy(self.address, self.landing, self.size, stream)
        arrivals.wait_for_event(self._taken.record(stream))

    def fetch(self) -> Fetched:
        slot = self._fetching.pop() if self._fetching else self._new_slot()
        self.lane.device.download(slot.array, self.address, self.lane.stream)
        slot.mark(self.lane.stream)
        fetched = Fetched(slot, self._fetching)
        self._fetched.add(fetched)
        return fetched

    def read(self) -> np.ndarray:
        return self.fetch().wait()

    def free(self) -> None:
        self.lane.synchronize()
        for fetched in list(self._fetched):  # who fetched may take the values later
            fetched.wait()
        for address in (self.address, self.landing):
            if address:
                self.lane.device.release(address)
        self.address = self.landing = 0
        self._landed = self._taken = None
        for slot in self._slots:
            slot.free()
        for slots in (self._slots, self._writing, self._fetching):
            slots.clear()

    def _slot_to_write(self) -> Slot:
        """One of two, in turn: the host fills one while the other is still being copied."""
        if len(self._writing) < 2:
            self._writing.append(self._new_slot())
        else:
            self._writing.reverse()
        slot = self._writing[-1]
        slot.wait()
        return slot

    def _new_slot(self) -> Slot:
        # numpy has no bfloat16, and the host makes none: such tensors are bound, never written.
        self._slots.append(Slot(self.lane, self.shape, np.dtype(self.dtype)))
        return self._slots[-1]


class CudaPart:
    """A part of a buffer, or the whole in another shape, to be bound."""

    def __init__(self, whole: CudaBuffer, shape: tuple[int, ...], address: int) -> None:
        self.whole, self.shape, self.address = whole, shape, address

    @property
    def nbytes(self) -> int:
        return tensor_bytes(self.shape, self.whole.dtype)

    @property
    def freed(self) -> bool:
        return self.whole.freed

    def __getitem__(self, index: int) -> "CudaPart":
        size = tensor_bytes(self.shape[1:], self.whole.dtype)
        return CudaPart(self.whole, self.shape[1:], self.address + index * size)

    def reshaped(self, shape: tuple[int, ...]) -> "CudaPart":
        return CudaPart(self.whole, shape, self.address)


class RowCopies:
    """Copies rows of one tensor to another of the same shape, each run of neighbours in one call.

    Args:
        rows: which of them, bool over the first axes.
        size: bytes of a whole tensor.
    """

    def __init__(self, lane: Lane, to: int, source: int, rows: np.ndarray, size: int) -> None:
        self.lane, self.to, self.source = lane, to, source
        row = size // rows.size
        edges = np.flatnonzero(np.diff(rows.ravel().astype(np.int8), prepend=0, append=0))
        self.runs = [(int(first) * row, int(end - first) * row) for first, end in edges.reshape(-1, 2)]

    def __call__(self) -> None:
        for offset, size in self.runs:
            self.lane.device.copy(self.to + offset, self.source + offset, size, self.lane.stream)
