"""One GPU by its driver alone, called through ctypes: memory, copies, streams, events and graphs without a package.

``DriverDevice`` has the interface of ``CudaDevice``, which is PyCUDA's. Both use the device's primary context.
https://docs.nvidia.com/cuda/cuda-driver-api/
"""

import ctypes
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np

from bitdance_edge.runtime.backends.device import DRIVER
from bitdance_edge.runtime.errors import BackendError, OutOfMemoryError

# CUresult, CUstream_flags, CUevent_flags and CUstreamCaptureMode of cuda.h
SUCCESS, OUT_OF_MEMORY, NOT_READY = 0, 2, 600
NON_BLOCKING, DISABLE_TIMING, THREAD_LOCAL = 1, 2, 1


class Status(int):
    """What a function of the driver returned."""

    @property
    def name(self) -> str:
        text = ctypes.c_char_p()
        ctypes.CDLL(DRIVER).cuGetErrorName(self, ctypes.byref(text))
        return (text.value or b"CUresult %d" % self).decode()


class DriverDevice:
    """One GPU and all that was made on it, which ``close`` frees. Use it within ``current()``, on any thread.

    Raises:
        BackendError: the driver refuses.
    """

    def __init__(self, ordinal: int) -> None:
        self.ordinal = ordinal
        self.driver = ctypes.CDLL(DRIVER)
        self._made: dict[int, tuple[str, ctypes.c_void_p]] = {}  # what is alive, and the function that frees it
        self._count = 0
        handle = ctypes.c_int()
        self.context = ctypes.c_void_p()
        self.call("cuInit", 0)
        self.call("cuDeviceGet", ctypes.byref(handle), ordinal)
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(self.context), handle)
        self._handle: ctypes.c_int | None = handle

    def call(self, function: str, *arguments: Any) -> None:
        """Call a function of the driver.

        Raises:
            OutOfMemoryError: there is too little memory.
            BackendError: it failed otherwise.
        """
        status = Status(getattr(self.driver, function)(*arguments))
        if status == OUT_OF_MEMORY:
            raise OutOfMemoryError(f"{function} gave {status.name}")
        if status != SUCCESS:
            raise BackendError(f"{function} gave {status.name}")

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make the GPU's context current on this thread for as long as the block runs."""
        self.call("cuCtxPushCurrent_v2", self.context)
        try:
            yield
        finally:
            self.call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))

    def allocate(self, size: int) -> int:
        """Allocate ``size`` bytes; returns their address.

        Raises:
            OutOfMemoryError: the GPU has fewer left.
        """
        address = ctypes.c_void_p()
        try:
            self.call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(max(size, 1)))
        except OutOfMemoryError:
            memory = self.memory()
            raise OutOfMemoryError(
                f"the GPU has {memory['free'] / 1e6:.0f} of {memory['total'] / 1e6:.0f} MB free, and {size / 1e6:.0f} "
                "MB more are needed: generate fewer images at once (max_batch), or close other programs on it"
            ) from None
        assert address.value is not None
        self._made[address.value] = ("cuMemFree_v2", address)
        return address.value

    def release(self, address: int) -> None:
        self._free(address)

    def pinned(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """Host memory that copies run from and to while the host does other things; freed with its last reference.

        Raises:
            OutOfMemoryError: the host has too little that can be pinned.
        """
        size, address = max(1, int(np.prod(shape)) * dtype.itemsize), ctypes.c_void_p()
        try:
            self.call("cuMemAllocHost_v2", ctypes.byref(address), ctypes.c_size_t(size))
        except OutOfMemoryError:
            raise OutOfMemoryError(
                f"this machine has no {size / 1e6:.0f} MB of memory that can be pinned: generate fewer images at once "
                "(max_batch), or raise its limit (ulimit -l)"
            ) from None
        memory = (ctypes.c_uint8 * size).from_address(address.value or 0)
        self._own(memory, "cuMemFreeHost", address)
        return np.ctypeslib.as_array(memory)[: int(np.prod(shape)) * dtype.itemsize].view(dtype).reshape(shape)

    def stream(self) -> "DriverStream":
        handle = ctypes.c_void_p()
        self.call("cuStreamCreate", ctypes.byref(handle), NON_BLOCKING)
        stream = DriverStream(self, handle)
        self._own(stream, "cuStreamDestroy_v2", handle)
        return stream

    def event(self, timing: bool = False) -> "DriverEvent":
        handle = ctypes.c_void_p()
        self.call("cuEventCreate", ctypes.byref(handle), 0 if timing else DISABLE_TIMING)
        event = DriverEvent(self, handle)
        self._own(event, "cuEventDestroy_v2", handle)
        return event

    def zero(self, address: int, size: int, stream: "DriverStream") -> None:
        self.call("cuMemsetD8Async", ctypes.c_void_p(address), 0, ctypes.c_size_t(size), stream.pointer)

    def upload(self, address: int, host: np.ndarray, stream: "DriverStream") -> None:
        """Queue a copy of a pinned array to the device."""
        self._copy("cuMemcpyHtoDAsync_v2", address, host.ctypes.data, host.nbytes, stream)

    def download(self, host: np.ndarray, address: int, stream: "DriverStream") -> None:
        """Queue a copy from the device to a pinned array."""
        self._copy("cuMemcpyDtoHAsync_v2", host.ctypes.data, address, host.nbytes, stream)

    def copy(self, to: int, source: int, size: int, stream: "DriverStream") -> None:
        """Queue a copy within the device."""
        self._copy("cuMemcpyDtoDAsync_v2", to, source, size, stream)

    def memory(self) -> Mapping[str, int]:
        """Bytes ``free`` and in ``total``, by the driver."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self.call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return {"free": free.value, "total": total.value}

    def close(self) -> None:
        """Free what is left and release the primary context."""
        if self._handle is None:
            return
        with self.current():
            self.call("cuCtxSynchronize")
            for key in reversed(list(self._made)):
                self._free(key)
        self.call("cuDevicePrimaryCtxRelease_v2", self._handle)
        self._handle = None

    def _copy(self, function: str, to: int, source: int, size: int, stream: "DriverStream") -> None:
        self.call(function, ctypes.c_void_p(to), ctypes.c_void_p(source), ctypes.c_size_t(size), stream.pointer)

    def _own(self, owner: Any, function: str, handle: ctypes.c_void_p) -> None:
        """Free what ``owner`` stands for with its last reference, or when the device is closed."""
        self._count -= 1  # negative, so that no key is an address
        self._made[self._count] = (function, handle)
        weakref.finalize(owner, self._forget, self._count).atexit = False

    def _forget(self, key: int) -> None:
        if key in self._made:  # not yet freed by close
            with self.current():
                self._free(key)

    def _free(self, key: int) -> None:
        function, handle = self._made.pop(key)
        self.call(function, handle)


class DriverStream:
    """A queue of work; ``handle`` is its ``CUstream``."""

    def __init__(self, device: DriverDevice, pointer: ctypes.c_void_p) -> None:
        self.device, self.pointer = device, pointer

    @property
    def handle(self) -> int:
        return self.pointer.value or 0

    def synchronize(self) -> None:
        self.device.call("cuStreamSynchronize", self.pointer)

    def wait_for_event(self, event: "DriverEvent") -> None:
        self.device.call("cuStreamWaitEvent", self.pointer, event.pointer, 0)


class DriverEvent:
    def __init__(self, device: DriverDevice, pointer: ctypes.c_void_p) -> None:
        self.device, self.pointer = device, pointer

    def record(self, stream: DriverStream) -> "DriverEvent":
        self.device.call("cuEventRecord", self.pointer, stream.pointer)
        return self

    def query(self) -> bool:
        """Whether the work before it is done."""
        status = Status(self.device.driver.cuEventQuery(self.pointer))
        if status not in (SUCCESS, NOT_READY):
            raise BackendError(f"cuEventQuery gave {status.name}")
        return status == SUCCESS

    def synchronize(self) -> None:
        self.device.call("cuEventSynchronize", self.pointer)


class GraphCalls:
    """The functions that ``CudaGraph`` needs, called as ``cuda-bindings`` has them: each returns status and results."""

    CUresult = SimpleNamespace(CUDA_SUCCESS=Status(SUCCESS))
    CUstreamCaptureMode = SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL=THREAD_LOCAL)

    def __init__(self) -> None:
        self._driver = ctypes.CDLL(DRIVER)

    def cuStreamBeginCapture(self, stream: int, mode: int) -> tuple[Status]:
        return (Status(self._driver.cuStreamBeginCapture_v2(ctypes.c_void_p(stream), mode)),)

    def cuStreamEndCapture(self, stream: int) -> tuple[Status, int | None]:
        graph = ctypes.c_void_p()
        status = Status(self._driver.cuStreamEndCapture(ctypes.c_void_p(stream), ctypes.byref(graph)))
        return status, graph.value

    def cuGraphGetNodes(self, graph: int) -> tuple[Status, None, int]:
        count = ctypes.c_size_t()
        status = Status(self._driver.cuGraphGetNodes(ctypes.c_void_p(graph), None, ctypes.byref(count)))
        return status, None, count.value

    def cuGraphInstantiate(self, graph: int, flags: int) -> tuple[Status, int | None]:
        made = ctypes.c_void_p()
        instantiate = self._driver.cuGraphInstantiateWithFlags
        status = Status(instantiate(ctypes.byref(made), ctypes.c_void_p(graph), ctypes.c_ulonglong(flags)))
        return status, made.value

    def cuGraphLaunch(self, executable: int, stream: int) -> tuple[Status]:
        return (Status(self._driver.cuGraphLaunch(ctypes.c_void_p(executable), ctypes.c_void_p(stream))),)

    def cuGraphExecDestroy(self, executable: int) -> tuple[Status]:
        return (Status(self._driver.cuGraphExecDestroy(ctypes.c_void_p(executable))),)

    def cuGraphDestroy(self, graph: int) -> tuple[Status]:
        return (Status(self._driver.cuGraphDestroy(ctypes.c_void_p(graph))),)
