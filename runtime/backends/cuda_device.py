"""One GPU by PyCUDA: its primary context, device and pinned host memory, streams and events.

The primary context is the one that the CUDA runtime uses, so TensorRT, PyTorch and CUDA graphs meet in it.
https://documen.tician.de/pycuda/driver.html
"""

import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np

from bitdance_edge.runtime.errors import BackendError, OutOfMemoryError

NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING of cuda.h: no waiting for the default stream, which others may use


def import_pycuda() -> ModuleType:
    """``pycuda.driver``, initialised; or one error that says how to get it."""
    try:
        driver = importlib.import_module("pycuda.driver")
    except (ImportError, OSError) as error:
        raise BackendError(
            f"PyCUDA cannot be imported ({error}); it is compiled when it is installed, which needs the CUDA toolkit: "
            "CUDA_ROOT=/usr/local/cuda pip install 'bitdance-edge[cuda]'"
        ) from None
    driver.init()
    return driver


class CudaDevice:
    """One GPU and all that was allocated on it, which ``close`` frees. Use it within ``current()``, on any thread."""

    def __init__(self, ordinal: int) -> None:
        self.cuda: Any = import_pycuda()
        self.ordinal = ordinal
        self.context: Any = self.cuda.Device(ordinal).retain_primary_context()
        self.allocations: dict[int, Any] = {}  # address -> PyCUDA's owner of the memory

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make the GPU's context current on this thread for as long as the block runs."""
        self.context.push()
        try:
            yield
        finally:
            self.cuda.Context.pop()

    def allocate(self, size: int) -> int:
        """Allocate ``size`` bytes; returns their address.

        Raises:
            OutOfMemoryError: the GPU has fewer left.
        """
        try:
            memory = self.cuda.mem_alloc(max(size, 1))
        except self.cuda.MemoryError:
            free, total = self.cuda.mem_get_info()
            raise OutOfMemoryError(
                f"the GPU has {free / 1e6:.0f} of {total / 1e6:.0f} MB free, and {size / 1e6:.0f} MB more are needed: "
                "generate fewer images at once (max_batch), or close other programs on it"
            ) from None
        self.allocations[int(memory)] = memory
        return int(memory)

    def release(self, address: int) -> None:
        self.allocations.pop(address).free()

    def pinned(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """Host memory that copies run from and to while the host does other things; freed with its last reference.

        Raises:
            OutOfMemoryError: the host has too little that can be pinned.
        """
        try:
            return self.cuda.pagelocked_empty(shape, dtype)
        except self.cuda.MemoryError:
            size = int(np.prod(shape)) * dtype.itemsize
            raise OutOfMemoryError(
                f"this machine has no {size / 1e6:.0f} MB of memory that can be pinned: generate fewer images at once "
                "(max_batch), or raise its limit (ulimit -l)"
            ) from None

    def stream(self) -> Any:
        """A stream with PyCUDA's ``handle``, ``synchronize`` and ``wait_for_event``."""
        return self.cuda.Stream(NON_BLOCKING)

    def event(self, timing: bool = False) -> Any:
        """An event with PyCUDA's ``record``, ``query``, ``synchronize`` and, with ``timing``, ``time_till``."""
        return self.cuda.Event(0 if timing else self.cuda.event_flags.DISABLE_TIMING)

    def zero(self, address: int, size: int, stream: Any) -> None:
        self.cuda.memset_d8_async(address, 0, size, stream)

    def upload(self, address: int, host: np.ndarray, stream: Any) -> None:
        """Queue a copy of a pinned array to the device."""
        self.cuda.memcpy_htod_async(address, host, stream)

    def download(self, host: np.ndarray, address: int, stream: Any) -> None:
        """Queue a copy from the device to a pinned array."""
        self.cuda.memcpy_dtoh_async(host, address, stream)

    def copy(self, to: int, source: int, size: int, stream: Any) -> None:
        """Queue a copy within the device."""
        self.cuda.memcpy_dtod_async(to, source, size, stream)

    def memory(self) -> Mapping[str, int]:
        """Bytes ``free`` and in ``total``, by the driver."""
        free, total = self.cuda.mem_get_info()
        return {"free": free, "total": total}

    def close(self) -> None:
        """Free what is left and release the primary context."""
        self.context.push()
        self.cuda.Context.synchronize()
        while self.allocations:
            self.allocations.popitem()[1].free()
        # While it is current: otherwise PyCUDA releases it only on the thread that retained it. This also pops it.
        self.context.detach()
