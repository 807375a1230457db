"""The drivers of the GPU that is not there (``fake_gpu``): streams, events, memory and graphs."""

import threading
from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from fake_gpu import FakeGpu

Operation = Callable[[], None]
GARBAGE = 0xAB


class Stream:
    def __init__(self, gpu: "FakeGpu") -> None:
        gpu.own("streams")
        self.gpu, self.handle = gpu, next(gpu._next)
        self.queued: deque[Operation] = deque()
        self.captured: list[Operation] | None = None
        gpu.streams[self.handle] = self

    def __del__(self) -> None:
        self.gpu.disown("streams")

    def push(self, what: str, operation: Operation) -> None:
        self.gpu.require_current()
        self.gpu.log.append(what)
        (self.queued if self.captured is None else self.captured).append(operation)

    def run(self, until: Operation | None = None) -> None:
        while self.queued:
            operation = self.queued.popleft()
            operation()
            if operation is until:
                return

    def synchronize(self) -> None:
        self.gpu.require_current()
        assert self.captured is None, "a stream that is being captured cannot be waited for"
        self.gpu.log.append("synchronize")
        self.run()

    def wait_for_event(self, event: "Event") -> None:
        self.push("wait for event", event.wait_for())


class Event:
    def __init__(self, gpu: "FakeGpu", flags: int = 0) -> None:
        gpu.own("events")
        self.gpu, self.stream = gpu, None
        self.done: list[bool] = [True]
        self.marker: Operation = lambda: None

    def __del__(self) -> None:
        self.gpu.disown("events")

    def record(self, stream: Stream) -> "Event":
        done = self.done = [False]

        def fire() -> None:
            done[0] = True

        self.marker, self.stream = fire, stream
        stream.push("record", fire)
        return self

    def wait_for(self) -> Operation:
        """As things stand now: a later ``record`` does not change what is waited for."""
        done, marker, stream = self.done, self.marker, self.stream

        def wait() -> None:
            if not done[0]:
                assert stream is not None
                stream.run(marker)

        return wait

    def query(self) -> bool:
        return self.done[0]

    def synchronize(self) -> "Event":
        self.gpu.require_current()
        if not self.done[0]:
            self.gpu.log.append("synchronize")
        self.wait_for()()
        return self


def driver(gpu: "FakeGpu") -> Any:
    """``pycuda.driver``."""

    class OutOfMemory(Exception):
        pass

    class Allocation:
        def __init__(self, size: int) -> None:
            self.address = gpu.allocate(size)

        def __int__(self) -> int:
            return self.address

        def free(self) -> None:
            gpu.require_current()
            del gpu.memory[self.address]

    class Context:
        def push(self) -> None:
            gpu.push()

        def __init__(self) -> None:
            self.thread = threading.get_ident()

        def detach(self) -> None:
            current = getattr(gpu._current, "depth", 0)
            if current or self.thread == threading.get_ident():  # else it is leaked without a word
                gpu.retained -= 1
            if current:
                gpu.pop()

        @staticmethod
        def pop() -> None:
            gpu.pop()

        @staticmethod
        def synchronize() -> None:
            for stream in list(gpu.streams.values()):
                stream.run()

    class Pinned(bytearray):
        def __del__(self) -> None:
            gpu.disown("pinned")

    def pinned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        gpu.own("pinned")
        return np.frombuffer(Pinned(int(np.prod(shape)) * np.dtype(dtype).itemsize), dtype).reshape(shape)

    class Device:
        def __init__(self, ordinal: int) -> None:
            pass

        def retain_primary_context(self) -> Context:
            gpu.retained += 1
            return Context()

    def upload(address: int, host: np.ndarray, stream: Stream) -> None:
        def copy() -> None:  # reads the host's memory when its turn comes, as the real one does
            gpu.bytes_at(address, host.nbytes)[:] = host.reshape(-1).view(np.uint8)

        stream.push("upload", copy)

    def download(host: np.ndarray, address: int, stream: Stream) -> None:
        def copy() -> None:
            host.reshape(-1).view(np.uint8)[:] = gpu.bytes_at(address, host.nbytes)

        stream.push("download", copy)

    def move(to: int, source: int, size: int, stream: Stream) -> None:
        def copy() -> None:
            gpu.bytes_at(to, size)[:] = gpu.bytes_at(source, size)

        stream.push("copy", copy)

    def clear(address: int, value: int, size: int, stream: Stream) -> None:
        def fill() -> None:
            gpu.bytes_at(address, size)[:] = value

        stream.push("clear", fill)

    return SimpleNamespace(
        init=lambda: None,
        Device=Device,
        Context=Context,
        Stream=lambda flags: Stream(gpu),
        Event=lambda flags: Event(gpu),
        event_flags=SimpleNamespace(DISABLE_TIMING=2),
        MemoryError=OutOfMemory,
        mem_alloc=Allocation,
        mem_get_info=lambda: (gpu.size - sum(block.nbytes for block in gpu.memory.values()), gpu.size),
        pagelocked_empty=pinned,
        memset_d8_async=clear,
        memcpy_htod_async=upload,
        memcpy_dtoh_async=download,
        memcpy_dtod_async=move,
    )


def bindings(gpu: "FakeGpu") -> Any:
    """``cuda.bindings.driver``."""
    ok = SimpleNamespace(name="CUDA_SUCCESS")
    graphs: dict[int, list[Operation]] = {}

    def begin(handle: int, mode: object) -> tuple:
        gpu.streams[handle].captured = []
        return (ok,)

    def end(handle: int) -> tuple:
        graph, stream = next(gpu._next), gpu.streams[handle]
        graphs[graph], stream.captured = stream.captured or [], None
        gpu.graphs.add(graph)
        return ok, graph

    def instantiate(graph: int, flags: int) -> tuple:
        executable = next(gpu._next)
        graphs[executable] = graphs[graph]
        gpu.graphs.add(executable)
        return ok, executable

    def launch(executable: int, handle: int) -> tuple:
        assert executable in gpu.graphs, "a graph was launched after it was destroyed"

        operations = graphs[executable]

        def replay() -> None:
            for operation in operations:
                operation()

        gpu.streams[handle].push("graph", replay)
        return (ok,)

    def destroy(graph: int) -> tuple:
        gpu.graphs.remove(graph)
        del graphs[graph]
        return (ok,)

    return SimpleNamespace(
        CUresult=SimpleNamespace(CUDA_SUCCESS=ok),
        CUstreamCaptureMode=SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL=1),
        cuStreamBeginCapture=begin,
        cuStreamEndCapture=end,
        cuGraphGetNodes=lambda graph: (ok, [], len(graphs[graph])),
        cuGraphInstantiate=instantiate,
        cuGraphLaunch=launch,
        cuGraphDestroy=destroy,
        cuGraphExecDestroy=destroy,
    )
