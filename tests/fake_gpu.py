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
from collections import Counter, deque
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from bitdance_edge.runtime import Bundle
from bitdance_edge.runtime.backends.onnxruntime import cpu_options, import_onnxruntime

Operation = Callable[[], None]
GARBAGE = 0xAB
ARENA = 1000  # bytes that every engine wants for its activations, per row of its first input


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


class Stream:
    def __init__(self, gpu: FakeGpu) -> None:
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
    def __init__(self, gpu: FakeGpu, flags: int = 0) -> None:
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


def driver(gpu: FakeGpu) -> Any:
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


def bindings(gpu: FakeGpu) -> Any:
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


def compute(engine: "Engine", outputs: list[str], inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    return engine.session.run(outputs, inputs)


class Engine:
    def __init__(self, gpu: FakeGpu, stage: str) -> None:
        self.gpu, self.stage, self.spec = gpu, stage, gpu.bundle.stage(stage)
        path = gpu.bundle.folder / self.spec.graph.path
        self.session = import_onnxruntime().InferenceSession(str(path), cpu_options(1))
        self.layers = ["first layer", "second layer"]
        self.contexts = 0  # that were ever made
        self.streamable_weights_size, self._on_gpu = len(path.read_bytes()), 0
        gpu.engines[stage] = self

    @property
    def weight_streaming_budget_v2(self) -> int:
        return self._on_gpu

    @weight_streaming_budget_v2.setter
    def weight_streaming_budget_v2(self, size: int) -> None:
        assert not self.contexts, "the budget is set before there are contexts"
        self._on_gpu = size

    @property
    def num_io_tensors(self) -> int:
        return len(self._tensors())

    def get_tensor_name(self, index: int) -> str:
        return list(self._tensors())[index]

    def get_tensor_mode(self, name: str) -> str:
        return self._tensors()[name][0]

    def get_tensor_dtype(self, name: str) -> Any:
        onnx = self._tensors()[name][1].type.removeprefix("tensor(").removesuffix(")")
        return SimpleNamespace(name={"float": "FLOAT", "float16": "HALF"}.get(onnx, onnx.upper()))

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(dim if isinstance(dim, int) else -1 for dim in self._tensors()[name][1].shape)

    def _tensors(self) -> dict[str, tuple[str, Any]]:
        inputs = {tensor.name: ("input", tensor) for tensor in self.session.get_inputs()}
        return inputs | {tensor.name: ("output", tensor) for tensor in self.session.get_outputs()}

    def create_execution_context(self, strategy: object) -> "ExecutionContext":
        assert strategy == "user managed"
        self.contexts += 1
        return ExecutionContext(self)

    def get_aliased_input_tensor(self, output: str) -> str | None:
        cached = output.startswith("present.") and self.gpu.aliases
        return output.replace("present.", "past_key_values.") if cached else None

    def create_engine_inspector(self) -> Any:
        layers = '{"Layers": [{"Name": "first layer", "Metadata": ""}, "second layer"]}'
        return SimpleNamespace(get_engine_information=lambda form: layers)


class ExecutionContext:
    def __init__(self, engine: Engine) -> None:
        self.engine, self.gpu = engine, engine.gpu
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.arena = (0, 0)
        self.warm = False
        self.profiler: Any = None
        self.gpu.contexts += 1

    def __del__(self) -> None:
        self.gpu.contexts -= 1

    def set_optimization_profile_async(self, index: int, handle: int) -> bool:
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = tuple(shape)
        return True

    def update_device_memory_size_for_shapes(self) -> int:
        return ARENA * next(iter(self.shapes.values()))[0]

    def set_device_memory(self, address: int, size: int) -> None:
        self.arena = (address, size)
        self.gpu.arenas.add(address)

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def is_stream_capturable(self, handle: int) -> bool:
        return True

    def execute_async_v3(self, handle: int) -> bool:
        stream, engine, arena = self.gpu.streams[handle], self.engine, self.arena
        addresses = dict(self.addresses)
        if stream.captured is not None and not self.warm:
            return False
        assert arena[1] >= self.update_device_memory_size_for_shapes(), "the context has too little memory"
        for tensor in engine.spec.outputs:
            past = engine.get_aliased_input_tensor(tensor.name)
            read = {addresses[item.name] for item in engine.spec.inputs}
            assert addresses[tensor.name] == addresses[past] if past else addresses[tensor.name] not in read
        self.warm = True

        def run() -> None:
            inputs = {
                tensor.name: self.gpu.array_at(addresses[tensor.name], self.shapes[tensor.name], tensor.dtype).copy()
                for tensor in engine.spec.inputs
            }
            self.gpu.bytes_at(*arena)[:] = GARBAGE
            names = [tensor.name for tensor in engine.spec.outputs]
            for tensor, values in zip(engine.spec.outputs, compute(engine, names, inputs), strict=True):
                self.gpu.array_at(addresses[tensor.name], values.shape, tensor.dtype)[...] = values
            if self.profiler is not None:
                for layer in engine.layers:
                    self.profiler.report_layer_time(layer, 0.5)

        stream.push(f"run {engine.stage}", run)
        return True


def builder(gpu: FakeGpu) -> dict[str, Any]:
    """The names of TensorRT that a build uses; a network is a stage of the bundle, and of its layers the cache's."""

    class Network:
        stage = ""

        @property
        def outputs(self) -> list[Any]:
            return [SimpleNamespace(name=tensor.name) for tensor in gpu.bundle.stage(self.stage).outputs]

        @property
        def num_outputs(self) -> int:
            return len(self.outputs)

        def get_output(self, index: int) -> Any:
            return self.outputs[index]

        @property
        def num_layers(self) -> int:
            return 2 * gpu.bundle.cache.layers if self.stage == "backbone" else 0

        def get_layer(self, index: int) -> Any:
            past, present = (
                SimpleNamespace(name=name, dtype=SimpleNamespace(name="FLOAT"))
                for name in list(gpu.bundle.cache_names())[index]
            )
            return SimpleNamespace(
                type=LayerType.KV_CACHE_UPDATE, get_input=lambda number: past, get_output=lambda number: present
            )

    class LayerType(Enum):
        KV_CACHE_UPDATE = 0
        ATTENTION_INPUT = 1

    class Builder:
        def __init__(self, logger: object) -> None:
            self.create_optimization_profile = lambda: SimpleNamespace(set_shape=lambda name, *shapes: None)

        def create_network(self, flags: int) -> Network:
            return Network()

        def create_builder_config(self) -> Any:
            return SimpleNamespace(add_optimization_profile=lambda profile: 0)

        def build_serialized_network(self, network: Network, config: Any) -> bytes:
            config.progress_monitor.phase_start("Building engine", None, 1)
            config.progress_monitor.phase_finish("Building engine")
            return f"engine of {network.stage}".encode()

    class OnnxParser:
        def __init__(self, network: Network, logger: object) -> None:
            self.network = network

        def parse_from_file(self, path: str) -> bool:
            self.network.stage = Path(path).stem
            return True

    return {
        "Builder": Builder,
        "OnnxParser": OnnxParser,
        "LayerType": LayerType,
        "IProgressMonitor": type("IProgressMonitor", (), {}),
        "NetworkDefinitionCreationFlag": SimpleNamespace(STRONGLY_TYPED=1),
        "ProfilingVerbosity": SimpleNamespace(DETAILED=1),
    }


def tensorrt(gpu: FakeGpu) -> Any:
    """The module of full TensorRT, which has no way to judge an engine by its header."""

    class Runtime:
        def __init__(self, logger: object) -> None:
            pass

        def deserialize_cuda_engine(self, plan: Any) -> Engine:
            if not gpu.implicit_context:
                gpu.require_current()
            return Engine(gpu, bytes(plan[:]).decode().removeprefix("engine of "))

    class IProfiler:
        def __init__(self) -> None:
            pass

    return SimpleNamespace(
        __name__="tensorrt",
        __version__="11.4.0",
        **builder(gpu),
        Runtime=Runtime,
        TensorIOMode=SimpleNamespace(INPUT="input", OUTPUT="output"),
        IProfiler=IProfiler,
        LayerInformationFormat=SimpleNamespace(JSON="json"),
        ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="user managed"),
    )
