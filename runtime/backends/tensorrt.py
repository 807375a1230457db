"""TensorRT and TensorRT-RTX engines on one GPU: bound once, launched on one stream, a patch as one CUDA graph.

Every tensor has one address for as long as it lives. All contexts of a lane use one arena for their activations, which
is safe because a lane runs one launch after another. The cache's input and output share their memory; an engine that
does not update in place (opset 20) gets a second buffer, from which what it wrote is copied back.
"""

import logging
import mmap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any
from weakref import ReferenceType, WeakValueDictionary, ref

from bitdance_edge.runtime.backends.cuda_device import CudaDevice
from bitdance_edge.runtime.backends.cuda_driver import DriverDevice
from bitdance_edge.runtime.backends.cuda_graph import A_GRAPH, PATCH, CaptureError, CudaGraph, import_cuda_bindings
from bitdance_edge.runtime.backends.cuda_memory import CudaBuffer
from bitdance_edge.runtime.backends.engine_fit import engine_path, refuse_invalid, require_fit
from bitdance_edge.runtime.backends.gpu_backend import GpuBackend
from bitdance_edge.runtime.backends.interface import Launch, Memory, StageTime
from bitdance_edge.runtime.backends.rtx_cache import RuntimeCache
from bitdance_edge.runtime.backends.signature import Loaded, require_memory_for, require_signature
from bitdance_edge.runtime.backends.streamed_weights import StreamedWeights
from bitdance_edge.runtime.backends.tensorrt_library import Library
from bitdance_edge.runtime.bundle.manifest import Bundle
from bitdance_edge.runtime.errors import BuildError

log = logging.getLogger(__name__)

TYPES = {  # trt.DataType -> as a manifest calls it
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT64": "int64",
    "UINT8": "uint8",
    "BOOL": "bool",
}


class TensorRTBackend(GpuBackend):
    """Engines of one target on one GPU.

    Args:
        folder: of the target's engines and their records.
        capability: the GPU's compute capability, "8.9".
        streamed: memory for the weights of engines that stream them; None: all are copied at each launch.
    """

    def __init__(
        self,
        bundle: Bundle,
        library: Library,
        folder: Path,
        device: CudaDevice | DriverDevice,
        capability: str,
        streamed: StreamedWeights | None = None,
    ) -> None:
        self.bundle, self.library, self.folder = bundle, library, folder
        self.streamed = streamed or StreamedWeights()
        self.capability = capability
        self.graphs: dict[str, str] = {}  # whether a patch is a CUDA graph, and otherwise why not
        self.calls = 0  # to the device that run something: engines, or graphs of them
        self.open_lane(device)

    @property
    def name(self) -> str:
        return self.library.name

    def load(self, stage: str) -> "TensorRTStage":
        self.stages.append(TensorRTStage(self, stage))
        return self.stages[-1]

    def capture(self, launches: Sequence[Launch]) -> "CapturedLaunch":
        patch = CapturedLaunch(self, launches)  # type: ignore[arg-type]  all are this backend's own
        self.captured.append(patch)
        return patch

    def second_lane(self) -> "TensorRTBackend":
        shared = self.library, self.folder, self.device, self.capability, self.streamed
        sibling = TensorRTBackend(self.bundle, *shared)
        self.siblings.append(sibling)
        return sibling

    @property
    def eager(self) -> bool:
        """Whether a capture has failed."""
        return self.graphs.get(PATCH, A_GRAPH) != A_GRAPH

    def run_eagerly(self, reason: str) -> None:
        """Stop capturing, and log why, once."""
        if not self.eager:
            self.graphs[PATCH] = f"not a CUDA graph: {reason}"
            log.warning("patches run launch by launch, not as one CUDA graph: %s", reason)


class TensorRTStage:
    """One engine, with a context for each combination of input shapes, for as long as a launch is bound to them."""

    def __init__(self, backend: TensorRTBackend, name: str) -> None:
        self.backend, self.name, self.time = backend, name, StageTime()
        self.spec = backend.bundle.stage(name)
        self.path = engine_path(backend.folder, name)
        library = backend.library
        self.record = require_fit(backend.bundle, backend.folder, name, library.trt, backend.capability)
        if library.judges_engines:
            refuse_invalid(self.path, library.trt, library.logger)
        self.engine: Any = _deserialize(library, self.path)
        if self.record.streams_weights:
            backend.streamed.give(self.engine)
        require_signature(self.path, self.spec, *_loaded(library.trt, self.engine))
        self._compiled = RuntimeCache(self.path)
        self._contexts: WeakValueDictionary[tuple[tuple[int, ...], ...], Context] = WeakValueDictionary()
        self._second_outputs: dict[tuple[str, tuple[int, ...]], CudaBuffer] = {}

    def bind(self, buffers: Mapping[str, Memory]) -> "BoundEngine":
        require_memory_for(self.name, self.spec, buffers)
        shapes = {tensor.name: buffers[tensor.name].shape for tensor in self.spec.inputs}
        key = tuple(shapes.values())
        context = self._contexts.get(key)
        if context is None:
            context = self._contexts[key] = self._context(shapes)
        return BoundEngine(self, context, buffers)

    def aliased_input(self, output: str) -> str | None:
        """The input whose memory an output shares, as the engine has it; older libraries have no such thing."""
        if not hasattr(self.engine, "get_aliased_input_tensor"):
            return None
        return self.engine.get_aliased_input_tensor(output)

    def second_output(self, output: str, shape: tuple[int, ...], dtype: str) -> CudaBuffer:
        """Memory for an output that the engine cannot write in place; one for all launches, which take turns."""
        if (output, shape) not in self._second_outputs:
            self._second_outputs[output, shape] = self.backend.empty(shape, dtype)
        return self._second_outputs[output, shape]

    def close(self) -> None:
        # Emptied, not only dropped: a launch that is still referenced must not keep memory of the GPU.
        for context in list(self._contexts.values()):
            context.trt = None
        self._compiled.save()
        self.engine = None
        while self._second_outputs:
            self._second_outputs.popitem()[1].free()

    def _context(self, shapes: Mapping[str, tuple[int, ...]]) -> "Context":
        """A context of these shapes, and room in the arena for its activations."""
        backend, stream = self.backend, self.backend.lane.stream
        with backend.library.recording() as said:
            context = _create_context(backend.library.trt, self.engine, self._compiled)
            if context is None:
                raise BuildError(f"{self.path} gives no execution context: {_reason(said)}")
            placed = context.set_optimization_profile_async(self._profile(shapes), stream.handle)
            if not placed or not all(context.set_input_shape(name, shape) for name, shape in shapes.items()):
                raise BuildError(f"{self.path} refuses the shapes {shapes}: {_reason(said)}")
        size = int(context.update_device_memory_size_for_shapes())
        backend.lane.arena.reserve(size, backend.lane.synchronize)
        return Context(context)

    def _profile(self, shapes: Mapping[str, tuple[int, ...]]) -> int:
        """The optimisation profile that these shapes belong to."""
        for index, ranges in enumerate(self.record.profiles.values()):
            if all(_within(shape, ranges[name]) for name, shape in shapes.items()):
                return index
        asked = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items() if name in self._varying())
        raise BuildError(
            f"{self.path} was built for at most {self.record.max_images} images at once, and {asked} is asked for; "
            f"generate fewer at once (max_batch), or build for more with: bitdance-edge build "
            f"{self.backend.bundle.folder} --target {self.record.target} --max-images N"
        )

    def _varying(self) -> set[str]:
        named = {tensor.name for tensor in self.spec.inputs if any(isinstance(dim, str) for dim in tensor.shape)}
        return {name for name in named if not name.startswith("past_key_values.")}


@dataclass(eq=False)
class Context:
    """An execution context, and the addresses that it was last given."""

    trt: Any
    generation: int = 0  # of the arena
    bound: "ReferenceType[BoundEngine] | None" = None  # weak, so that both go with the last reference to the launch


class BoundEngine:
    """An engine's launch over buffers at fixed addresses, which it keeps alive."""

    def __init__(self, stage: TensorRTStage, context: Context, buffers: Mapping[str, Memory]) -> None:
        self.stage, self.context, self.lane, self.memory = stage, context, stage.backend.lane, dict(buffers)
        tensors = (*stage.spec.inputs, *stage.spec.outputs)
        self.addresses = {tensor.name: buffers[tensor.name].address for tensor in tensors}
        self.copies_back: list[tuple[int, CudaBuffer]] = []  # (address, where the engine wrote instead)
        inputs = {self.addresses[tensor.name] for tensor in stage.spec.inputs}
        for tensor in stage.spec.outputs:
            self._settle(tensor.name, tensor.dtype, self.addresses[tensor.name] in inputs)

    def _settle(self, output: str, dtype: str, shared: bool) -> None:
        """Check that an output has the memory of the input that it aliases, or give it memory of its own.

        Raises:
            BuildError: the engine updates an input in place, and the buffers given are two.
        """
        past = self.stage.aliased_input(output)
        if past is not None and self.addresses[past] != self.addresses[output]:
            raise BuildError(f"{self.stage.path} updates {past} in place, but {output} is bound to another address")
        if past is None and shared:
            second = self.stage.second_output(output, self.memory[output].shape, dtype)
            self.copies_back.append((self.addresses[output], second))
            self.addresses[output] = second.address

    def __call__(self) -> None:
        started = perf_counter()
        context, lane = self.context, self.lane
        if context.generation != lane.arena.generation:
            context.trt.set_device_memory(lane.arena.address, lane.arena.size)
            context.generation = lane.arena.generation
        if context.bound is None or context.bound() is not self:
            for name, address in self.addresses.items():
                context.trt.set_tensor_address(name, address)
            context.bound = ref(self)
        with self.stage.backend.library.recording() as said:
            launched = context.trt.execute_async_v3(lane.stream.handle)
        if not launched:
            raise BuildError(f"{self.stage.path} does not run: {_reason(said)}")
        for address, second in self.copies_back:
            lane.device.copy(address, second.address, second.size, lane.stream)
        self.stage.backend.calls += 1
        self.stage.time.add(perf_counter() - started)

    def require_capturable(self) -> None:
        """Check that a launch can be part of a CUDA graph, where the library can tell (TensorRT-RTX).

        Raises:
            CaptureError: it cannot.
        """
        trt = self.context.trt
        if self.stage.record.streams_weights:
            raise CaptureError(f"{self.stage.name} streams its weights, and allocates for that while it runs")
        if hasattr(trt, "is_stream_capturable") and not trt.is_stream_capturable(self.lane.stream.handle):
            raise CaptureError(
                f"{self.stage.name} cannot be captured in its present shapes, by the library's own account"
            )


class CapturedLaunch:
    """Launches that become one CUDA graph.

    The first call runs them one by one, while TensorRT sets up what a shape needs once; the second captures.
    A graph contains addresses, so it is captured again when the arena has moved.
    """

    def __init__(self, backend: TensorRTBackend, launches: Sequence[BoundEngine]) -> None:
        self.backend, self.launches = backend, launches
        self.graph: CudaGraph | None = None
        self.generation = 0
        self.warm = False

    def __call__(self) -> None:
        if self.graph is not None and self.generation != self.backend.lane.arena.generation:
            self._drop_graph()
        if self.graph is None and self.warm and not self.backend.eager:
            self._capture()
        if self.graph is None:
            for launch in self.launches:
                launch()
            self.warm = True
            return
        self.graph()
        self.backend.calls += 1

    def close(self) -> None:
        self._drop_graph()
        self.backend.forget(self)

    def _drop_graph(self) -> None:
        if self.graph is not None:
            self.backend.lane.synchronize()
            self.graph.close()
            self.graph = None

    def _capture(self) -> None:
        calls = self.backend.calls
        try:
            for launch in self.launches:
                launch.require_capturable()
            self.graph = CudaGraph(import_cuda_bindings(), self.backend.lane.stream, self.launches)
            self.generation = self.backend.lane.arena.generation
            self.backend.graphs[PATCH] = A_GRAPH
        except (CaptureError, BuildError) as error:
            self.backend.run_eagerly(str(error))
        self.backend.calls = calls  # what was recorded has not run


def _deserialize(library: Library, path: Path) -> Any:
    # Mapped rather than read: the library copies the weights to the GPU, and the host need not hold them as well.
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as plan,
        library.recording() as said,
    ):
        engine = library.trt.Runtime(library.logger).deserialize_cuda_engine(plan)
    if engine is None:
        raise BuildError(f"{path} does not load: {_reason(said)}")
    return engine


def _loaded(trt: Any, engine: Any) -> tuple[Loaded, Loaded]:
    """Inputs and outputs of an engine as ``require_signature`` takes them."""
    inputs: dict[str, tuple[str, Sequence[object]]] = {}
    outputs: dict[str, tuple[str, Sequence[object]]] = {}
    for name in (engine.get_tensor_name(index) for index in range(engine.num_io_tensors)):
        into = inputs if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT else outputs
        dtype = engine.get_tensor_dtype(name).name
        into[name] = (str(TYPES.get(dtype, dtype)), list(engine.get_tensor_shape(name)))
    return inputs, outputs


def _create_context(trt: Any, engine: Any, compiled: RuntimeCache) -> Any:
    """A context whose activations lie in memory of ours.

    TensorRT-RTX compiles its kernels for the shapes of a context. It is told to do so before the first launch: by
    default it starts with generic ones and replaces them later, which a captured graph would not see.
    """
    strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
    if not hasattr(trt, "DynamicShapesKernelSpecializationStrategy"):
        return engine.create_execution_context(strategy)
    config = engine.create_runtime_config()
    config.set_execution_context_allocation_strategy(strategy)
    config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
    compiled.use(config)
    return engine.create_execution_context(config)


def _reason(said: Sequence[str]) -> str:
    """The last line that the library said while it failed."""
    return said[-1] if said else "the library gives no reason"


def _within(shape: Sequence[int], ranges: Sequence[Sequence[int]]) -> bool:
    smallest, _, largest = ranges
    return all(low <= size <= high for low, size, high in zip(smallest, shape, largest, strict=True))
