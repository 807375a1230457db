"""A GPU that is not there: the drivers of PyCUDA and cuda-bindings, and TensorRT, as far as the runtime uses them.

What is queued on a stream is done only when somebody waits for it, so that a missing wait shows as stale or undefined
values. Memory has addresses, starts as garbage and is gone when it is freed: a queued copy or launch that touches it
then fails. Engines are the bundle's ONNX files on ONNX Runtime's CPU provider, reading and writing at the addresses
that they were given, and leave garbage in their arena. Calls without a current context, waits while a stream is being
captured and a capture before a first run fail, as they do on a real GPU.

It cannot show what only a GPU can: time, kernels that run side by side, what the libraries allow in a capture, how
much memory they take for themselves, or whether an engine computes what its ONNX file says.
"""

import itertools
import threading
import weakref
from collections import Counter

import numpy as np
from fake_driver import GARBAGE, Stream, bindings, driver
from fake_tensorrt import Engine, tensorrt

from bitdance_edge.runtime import Bundle


class FakeGpu:
    """The device, with what is alive on it.

    Args:
        size: bytes of memory.
        aliases: whether engines update the cache in place.
        implicit_context: engines load without a current context, as in a process that has none but TensorRT's own.
    """

    def __init__(self, bundle: Bundle, size: int = 10**9, aliases: bool = True, implicit_context: bool = False) -> None:
        self.bundle, self.size, self.aliases, self.implicit_context = bundle, size, aliases, implicit_context
        self.memory: dict[int, np.ndarray] = {}  # address -> bytes
        self.arenas: set[int] = set()  # addresses that execution contexts were given for their activations
        self.streams: weakref.WeakValueDictionary[int, Stream] = weakref.WeakValueDictionary()
        self.graphs: set[int] = set()
        self.contexts = 0
        self.retained = 0
        self.owned = Counter(
            pinned=0, streams=0, events=0
        )  # pinned memory, streams and events, which PyCUDA frees with their last reference
        self.lost: list[str] = []
        self.log: list[str] = []  # what the host asked for, in order
        self.engines: dict[str, Engine] = {}  # by stage, as they were loaded last
        self._next = itertools.count(1)
        self._current = threading.local()
        self.driver, self.bindings, self.trt = driver(self), bindings(self), tensorrt(self)

    @property
    def alive(self) -> dict[str, int]:
        """What has not been given back."""
        return {
            "memory": len(self.memory),
            "graphs": len(self.graphs),
            "contexts": self.contexts,
            "primary context": self.retained,
            **self.owned,
            "lost": len(self.lost),
        }

    @property
    def tensor_bytes(self) -> int:
        """Bytes allocated for anything but activations."""
        return sum(block.nbytes for address, block in self.memory.items() if address not in self.arenas)

    def own(self, kind: str) -> None:
        self.require_current()
        self.owned[kind] += 1

    def disown(self, kind: str) -> None:
        self.owned[kind] -= 1
        if not getattr(self._current, "depth", 0):
            self.lost.append(kind)

    def require_current(self) -> None:
        assert getattr(self._current, "depth", 0), "no CUDA context is current on this thread"

    def push(self) -> None:
        self._current.depth = getattr(self._current, "depth", 0) + 1

    def pop(self) -> None:
        self.require_current()
        self._current.depth -= 1

    def allocate(self, size: int) -> int:
        self.require_current()
        if sum(block.nbytes for block in self.memory.values()) + size > self.size:
            raise self.driver.MemoryError
        address = next(self._next) << 32
        self.memory[address] = np.full(size, GARBAGE, np.uint8)
        return address

    def bytes_at(self, address: int, size: int) -> np.ndarray:
        base = address >> 32 << 32
        assert base in self.memory, f"address {address:#x} was freed or never allocated"
        offset = address - base
        assert offset + size <= self.memory[base].nbytes, f"{size} bytes at {address:#x} go beyond their allocation"
        return self.memory[base][offset : offset + size]

    def array_at(self, address: int, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        kind = np.dtype(dtype)
        return self.bytes_at(address, int(np.prod(shape)) * kind.itemsize).view(kind).reshape(shape)
