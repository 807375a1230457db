"""ONNX Runtime on the CPU: stages are sessions, their inputs and outputs bound to memory by address.

https://onnxruntime.ai/docs/api/python/api_summary.html
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from time import perf_counter
from types import ModuleType
from typing import Any, cast

import numpy as np

from bitdance_edge.imports import failed_import
from bitdance_edge.runtime.backends.built_graphs import BuiltGraphs
from bitdance_edge.runtime.backends.freed_memory import give_back_freed
from bitdance_edge.runtime.backends.huge_pages import huge_pages
from bitdance_edge.runtime.backends.interface import Arrived, InOrder, Launch, Memory, Stage, StageTime
from bitdance_edge.runtime.backends.processor import int8_path
from bitdance_edge.runtime.backends.signature import require_memory_for, require_signature
from bitdance_edge.runtime.bundle.dtypes import TENSOR_DTYPES
from bitdance_edge.runtime.bundle.files import cannot_write
from bitdance_edge.runtime.bundle.manifest import Bundle
from bitdance_edge.runtime.bundle.specs import StageSpec
from bitdance_edge.runtime.bundle.stage_names import LOOP_STAGES, WINDOW_STAGES
from bitdance_edge.runtime.errors import BackendError, BundleError, OutOfMemoryError, StorageError

LOG_SEVERITY = 4  # none but fatal ones: errors are raised with the same text
BFLOAT16 = 16  # of onnx.TensorProto: an element type that numpy does not have
# Optimisers that take from a product what fuses it with its Q and DQ, so that its weights would be dequantised at every
# launch: one makes a Gemm of it and its bias, the other makes several products read one DequantizeLinear. The third
# repeats the Q and DQ behind a convolution after what only reshapes, as nodes of a type that it contradicts later.
BEFORE_QDQ = "MatMulAddFusion;CommonSubexpressionElimination;QDQPropagationTransformer"
# What ONNX Runtime's exceptions hold when memory ran out: those of its arena, of C++ on Linux and on Windows, of CUDA.
OUT_OF_MEMORY = ("Failed to allocate memory", "bad_alloc", "bad allocation", "out of memory")
TYPES: dict[str, str] = {f"tensor({name})": name for name in TENSOR_DTYPES} | {
    "tensor(float)": "float32"
}  # of a session's tensors
UNQUANTISED = ("fp32", "fp16", "bf16")
CPU_TARGET = "cpu"
# Stages whose weights are read often enough that moving them into huge pages pays within an image. The backbone's, read
# once a patch, take longer to move than ten images gain.
READ_OFTEN = ("head",)
# Bytes of weights from which a stage's threads wait for work by spinning. A smaller stage has little to hand over, and
# half of the processor time of a small model's image was spent waiting for it.
SPINNING_FROM = 8 << 20
# Bytes of weights of the largest stage of a patch: with less, one thread makes a few images in less time than two do.
SMALL_MODEL = 5 << 20
HUGE_FROM = 16 << 20  # bytes of weights: the page table entries of fewer stay in the processor's own table


def import_onnxruntime() -> ModuleType:
    """The onnxruntime package, or one error that says how to get it."""
    try:
        import onnxruntime

        onnxruntime.InferenceSession  # noqa: B018  of what is only a folder of that name, nothing can be used
    except Exception as error:  # a broken extension module may raise any
        failed = failed_import(error, "onnxruntime")
        if failed is not None and failed.where:
            raise BackendError(f"{failed.explained('cpu')}, or 'bitdance-edge[gpu]' on a machine with CUDA") from error
        raise BackendError(
            "no backend is installed: pip install 'bitdance-edge[cpu]' for ONNX Runtime on the CPU, or "
            "'bitdance-edge[gpu]' on a machine with CUDA (one of the two, never both)"
        ) from None
    return onnxruntime


@contextmanager
def memory_errors() -> Iterator[None]:
    """Turn ONNX Runtime's exceptions into OutOfMemoryError where their text says so: their classes do not.

    Raises:
        OutOfMemoryError: with what ONNX Runtime said.
    """
    try:
        yield
    except Exception as error:
        said = str(error)
        if not any(sign in said for sign in OUT_OF_MEMORY):
            raise
        raise OutOfMemoryError(
            f"ONNX Runtime ran out of memory: generate fewer images at once, or close other programs ({said.strip()})"
        ) from error


def cpu_options(threads: int = 0, precision: str = "fp32") -> Any:
    """Options of a session on the CPU; 0 threads is one a physical core, ``precision`` that of the stage."""
    options = import_onnxruntime().SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = LOG_SEVERITY
    # A pattern is one block for all tensors of a launch, allocated on top of what the first launch took, and no faster.
    options.enable_mem_pattern = False
    # Each stage has threads of its own, which would go on waiting for work while those of the next one need the cores.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if precision not in UNQUANTISED:
        if int8_path().widened:
            options.add_session_config_entry("session.x64quantprecision", "1")
        options.add_session_config_entry("optimization.disable_specified_optimizers", BEFORE_QDQ)
    if precision == "fp8":  # no CPU computes in it: weights are unpacked once, not at every launch
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    return options


def copy_of_rows(target: Memory, source: Memory, rows: np.ndarray) -> Launch:
    """Make the launch of ``Backend.overwrite`` for memory of the host."""
    written, read = cast(HostBuffer, target), cast(HostBuffer, source)

    def copy() -> None:
        written.array[rows] = read.array[rows]

    return copy


class HostBuffer:
    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def address(self) -> int:
        return self.array.ctypes.data

    @property
    def nbytes(self) -> int:
        return self.array.nbytes

    def __getitem__(self, index: int) -> "HostBuffer":
        return HostBuffer(self.array[index])

    def reshaped(self, shape: tuple[int, ...]) -> "HostBuffer":
        return HostBuffer(self.array.reshape(shape))

    def write(self, values: np.ndarray) -> None:
        self.array[...] = values

    def fetch(self) -> Arrived:
        return Arrived(self.array.copy())

    def read(self) -> np.ndarray:
        return self.array.copy()

    def free(self) -> None:
        self.array = self.array[:0]


class OnnxRuntimeStage:
    """One session.

    Args:
        trace: folder for an operator trace, or None.
        optimised: the graph was optimised when it was built, and is loaded unchanged.
    """

    def __init__(self, path: Path, spec: StageSpec, threads: int, trace: Path | None, optimised: bool = False) -> None:
        options = cpu_options(threads, spec.precision)
        if optimised:
            options.graph_optimization_level = import_onnxruntime().GraphOptimizationLevel.ORT_DISABLE_ALL
        if path.stem not in (*LOOP_STAGES, *WINDOW_STAGES):
            # Reuse is planned by equal sizes and holds what it hands on until its last reuse: with activations this
            # large that is twice the memory.
            options.enable_mem_reuse = False
        if path.stem in LOOP_STAGES and spec.weight_bytes < SPINNING_FROM:
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        trace_session(options, trace, path.stem)
        self.path, self.spec, self.traced, self.time = path, spec, trace is not None, StageTime()
        huge = path.stem in READ_OFTEN and spec.weight_bytes >= HUGE_FROM
        with huge_pages() if huge else nullcontext():
            self.session = open_session(path, options, ["CPUExecutionProvider"])
            give_back_freed()
        require_described(path, spec, self.session)

    def bind(self, buffers: Mapping[str, Memory]) -> Launch:
        require_memory_for(self.path.stem, self.spec, buffers)
        binding = bind_tensors(self.session, self.spec, buffers, "cpu", 0)
        return BoundSession(self.session, binding, list(buffers.values()), self.time, self.path)

    def close(self) -> None:
        """End the operator trace, if there is one; the file is complete then.

        Raises:
            StorageError: it is cut short, which ONNX Runtime does not say.
        """
        if self.traced:
            self.traced = False
            require_whole(Path(self.session.end_profiling()))


def make_trace_folder(folder: Path) -> None:
    """Make the folder of operator traces.

    Raises:
        StorageError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from None


def trace_session(options: Any, trace: Path | None, stage: str) -> None:
    """Have a session write an operator trace into the folder ``trace``, if there is one."""
    if trace is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(trace / stage)


def require_whole(trace: Path) -> None:
    """Check that an operator trace, a JSON list with one event a line, has its last line.

    Raises:
        StorageError: it has not, or is missing.
    """
    try:
        with trace.open("rb") as file:
            file.seek(max(0, trace.stat().st_size - 3))
            whole = file.read().endswith((b"]\n", b"]\r\n"))
    except OSError as error:
        raise cannot_write(trace, error) from None
    if not whole:
        raise StorageError(f"the trace {trace} is cut short: free some space on that disk, or choose another folder")


def require_described(path: Path, spec: StageSpec, session: Any) -> None:
    """Check that inputs and outputs of a session are those of the manifest.

    Raises:
        BundleError: a name, an element type or a dimension is another.
    """
    inputs, outputs = (
        {tensor.name: (str(TYPES.get(tensor.type, tensor.type)), tensor.shape) for tensor in tensors}
        for tensors in (session.get_inputs(), session.get_outputs())
    )
    require_signature(path, spec, inputs, outputs)


def open_session(path: Path, options: Any, providers: Sequence[Any]) -> Any:
    """A session of a graph.

    Raises:
        OutOfMemoryError: it does not fit into memory.
        BundleError: ONNX Runtime refuses it; with its reason.
    """
    ort = import_onnxruntime()
    try:
        with memory_errors():
            return ort.InferenceSession(str(path), options, providers=list(providers))
    except OutOfMemoryError:
        raise
    except Exception as error:  # onnxruntime's exceptions share no base class of their own
        reason = str(error).splitlines()[0]
        raise BundleError(f"ONNX Runtime {ort.__version__} cannot load {path}: {reason}") from error


def bind_tensors(session: Any, spec: StageSpec, buffers: Mapping[str, Memory], kind: str, ordinal: int) -> Any:
    """A binding of a session's inputs and outputs to the addresses of buffers on the device ``kind``."""
    binding = session.io_binding()
    for tensors, bind in ((spec.inputs, binding.bind_input), (spec.outputs, binding.bind_output)):
        for tensor in tensors:
            buffer = buffers[tensor.name]
            bind(tensor.name, kind, ordinal, element_type(tensor.dtype), buffer.shape, buffer.address)
    return binding


def element_type(dtype: str) -> Any:
    """As a binding takes it: numpy's type, or ONNX's number for what numpy lacks."""
    return BFLOAT16 if dtype == "bfloat16" else np.dtype(dtype)


class BoundSession:
    """Runs the graph over its buffers, and keeps them: a binding holds addresses, not the memory behind them."""

    def __init__(self, session: Any, binding: Any, memory: list[Memory], time: StageTime, path: Path) -> None:
        self.session, self.binding, self.memory, self.time, self.path = session, binding, memory, time, path

    def __call__(self) -> None:
        """Run the graph.

        Raises:
            OutOfMemoryError, BundleError: as ``run_bound``.
        """
        started = perf_counter()
        run_bound(self.session, self.binding, None, self.path)
        self.time.add(perf_counter() - started)


def run_bound(session: Any, binding: Any, options: Any, path: Path) -> None:
    """Run a graph over what is bound.

    Raises:
        OutOfMemoryError: there is too little memory.
        BundleError: the graph cannot take the values that the bundle has for it, such as ids of no class or token.
    """
    try:
        with memory_errors():
            session.run_with_iobinding(binding, options)
    except OutOfMemoryError:
        raise
    except Exception as error:  # onnxruntime's exceptions share no base class of their own
        raise BundleError(f"ONNX Runtime cannot run {path}: {str(error).splitlines()[0]}") from error


@dataclass
class OnnxRuntimeBackend:
    """Sessions on the CPU, whose launches are done when they return."""

    bundle: Bundle
    threads: int | None = None
    trace: Path | None = None
    builds: bool = True  # run what was built for this device where it fits; False: the bundle's own graphs
    name: str = field(default="onnxruntime-cpu", init=False)
    run_ahead: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        import_onnxruntime()
        if any(stage.precision == "bf16" for stage in self.bundle.stages.values()):
            raise BackendError(
                f"{self.bundle.folder} is in bfloat16, for which ONNX Runtime has no kernels on a CPU: "
                "export it again with --dtype fp32, or run it on a GPU"
            )
        if any(stage.precision == "nvfp4" for stage in self.bundle.stages.values()):
            raise BackendError(
                f"{self.bundle.folder} has weights in NVFP4, for which ONNX Runtime has no kernels: build it for GPUs "
                f"that have it with: bitdance-edge build {self.bundle.folder} --target rtx:12.0"
            )
        if self.trace is not None:
            make_trace_folder(self.trace)

    def empty(self, shape: tuple[int, ...], dtype: str, *, ahead: bool = False) -> HostBuffer:
        return HostBuffer(np.zeros(shape, dtype))

    @cached_property
    def built(self) -> BuiltGraphs:
        """What was built of the bundle for this device."""
        return BuiltGraphs.find(self.bundle, CPU_TARGET, import_onnxruntime().__version__)

    def load(self, stage: str) -> OnnxRuntimeStage:
        graph = self.built.graph(stage) if self.builds else None
        path, spec = graph or self.bundle.verified(stage), self.bundle.stage(stage)
        threads = self.threads or self._enough_threads
        return OnnxRuntimeStage(path, spec, threads, self.trace, optimised=graph is not None)

    @cached_property
    def _enough_threads(self) -> int:
        """Threads of each graph where nobody asks for a number: 1 for a small model, else 0, one a physical core."""
        weights = [stage.weight_bytes for name, stage in self.bundle.stages.items() if name in LOOP_STAGES]
        return int(bool(weights) and max(weights) < SMALL_MODEL)

    def capture(self, launches: Sequence[Launch]) -> InOrder:
        return InOrder(launches)

    def overwrite(self, target: Memory, source: Memory, rows: np.ndarray) -> Launch:
        return copy_of_rows(target, source, rows)

    def second_lane(self) -> "OnnxRuntimeBackend":
        return self

    def trim(self, stages: Iterable[Stage]) -> None:
        """Nothing is given back: after launches of many sizes a CPU's sessions keep no more than for the largest."""

    def current(self) -> AbstractContextManager[None]:
        return nullcontext()

    def close(self) -> None:
        """Sessions and buffers own what they use, and give it back with their last reference."""
