"""ONNX Runtime, on the CPU or on a CUDA GPU: stages are sessions, their inputs and outputs bound to memory by address.

On the GPU a session's run ends when its kernels have, so that launches, writes and fetches need no further order.
https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html
"""

import itertools
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
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
from bitdance_edge.runtime.backends.interface import Arrived, InOrder, Launch, Memory, StageTime
from bitdance_edge.runtime.backends.processor import int8_path
from bitdance_edge.runtime.backends.signature import require_memory_for, require_signature
from bitdance_edge.runtime.bundle.dtypes import TENSOR_DTYPES
from bitdance_edge.runtime.bundle.files import cannot_write
from bitdance_edge.runtime.bundle.manifest import Bundle
from bitdance_edge.runtime.bundle.specs import StageSpec
from bitdance_edge.runtime.bundle.stage_names import LOOP_STAGES
from bitdance_edge.runtime.errors import BackendError, BundleError, OutOfMemoryError, StorageError

log = logging.getLogger(__name__)

LOG_SEVERITY = 3  # errors only
BFLOAT16 = 16  # of onnx.TensorProto: an element type that numpy does not have
# Optimisers that take from a product what fuses it with its Q and DQ, so that its weights would be dequantised at every
# launch: one makes a Gemm of it and its bias, the other makes several products read one DequantizeLinear.
BEFORE_QDQ = "MatMulAddFusion;CommonSubexpressionElimination"
# What ONNX Runtime's exceptions hold when memory ran out: those of its arena, of C++ on Linux and on Windows, of CUDA.
OUT_OF_MEMORY = ("Failed to allocate memory", "bad_alloc", "bad allocation", "out of memory")
TYPES = {f"tensor({name})": name for name in TENSOR_DTYPES} | {"tensor(float)": "float32"}  # of a session's tensors
UNQUANTISED = ("fp32", "fp16", "bf16")
NO_GRAPH = "-1"  # of the run option gpu_graph_id: run, and capture nothing
# Stages whose weights are read often enough that moving them into huge pages pays within an image. The backbone's, read
# once a patch, take longer to move than ten images gain.
READ_OFTEN = ("head",)
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


@dataclass(frozen=True)
class Provider:
    """A device as ONNX Runtime names it."""

    kind: str  # "cpu" or "cuda"
    ordinal: int = 0

    @property
    def target(self) -> str:
        """The target whose builds run here."""
        return self.kind

    def providers(self, graphs: bool) -> list[Any]:
        if self.kind == "cpu":
            return ["CPUExecutionProvider"]
        options = {"device_id": str(self.ordinal), "enable_cuda_graph": "1" if graphs else "0"}
        return [("CUDAExecutionProvider", options), "CPUExecutionProvider"]


CPU = Provider("cpu")


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

    def write(self, values: np.ndarray) -> None:
        self.array[...] = values

    def fetch(self) -> Arrived:
        return Arrived(self.array.copy())

    def read(self) -> np.ndarray:
        return self.array.copy()

    def free(self) -> None:
        self.array = self.array[:0]


class CudaValueBuffer:
    """Memory of the GPU, owned by an OrtValue."""

    def __init__(self, value: Any, shape: tuple[int, ...], dtype: np.dtype, offset: int = 0) -> None:
        self.value: Any = value
        self.shape, self.dtype, self.offset = shape, dtype, offset

    @property
    def address(self) -> int:
        return self.value.data_ptr() + self.offset

    @property
    def nbytes(self) -> int:
        return self.dtype.itemsize * math.prod(self.shape)

    def __getitem__(self, index: int) -> "CudaValueBuffer":
        part = self.shape[1:]
        offset = self.offset + index * self.dtype.itemsize * int(np.prod(part))
        return CudaValueBuffer(self.value, part, self.dtype, offset)

    def write(self, values: np.ndarray) -> None:
        whole = np.broadcast_to(np.asarray(values, self.dtype), self.shape)
        self.value.update_inplace(np.ascontiguousarray(whole))

    def fetch(self) -> Arrived:
        return Arrived(self.read())

    def read(self) -> np.ndarray:
        first = self.offset // self.dtype.itemsize
        return self.value.numpy().reshape(-1)[first : first + int(np.prod(self.shape))].reshape(self.shape)

    def free(self) -> None:
        self.value = None


class OnnxRuntimeStage:
    """One session.

    Args:
        trace: folder for an operator trace, or None.
        graphs: capture each binding's kernels as a CUDA graph; where the session does not allow it, it goes without.
        optimised: the graph was optimised when it was built, and is loaded unchanged.
    """

    def __init__(
        self,
        path: Path,
        spec: StageSpec,
        place: Provider,
        threads: int,
        trace: Path | None,
        graphs: bool = False,
        optimised: bool = False,
    ) -> None:
        options = cpu_options(threads, spec.precision if place.kind == "cpu" else "fp32")
        if optimised:
            options.graph_optimization_level = import_onnxruntime().GraphOptimizationLevel.ORT_DISABLE_ALL
        if place.kind == "cpu" and path.stem not in LOOP_STAGES:
            # Reuse is planned by equal sizes and holds what it hands on until its last reuse: with activations this
            # large that is twice the memory.
            options.enable_mem_reuse = False
        if trace is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(trace / path.stem)
        self.spec, self.place, self.traced, self.time = spec, place, trace is not None, StageTime()
        self.without_graph: str | None = None  # why launches are not CUDA graphs
        self._graph_ids = itertools.count(1)
        try:
            self.session = self._open(path, options, graphs)
        except Exception as error:  # onnxruntime's exceptions share no base class of their own
            if not graphs or isinstance(error, OutOfMemoryError):
                raise
            self.without_graph = str(error).splitlines()[0]
            log.info("launches of %s are not CUDA graphs: %s", path.stem, self.without_graph)
            self.session = self._open(path, options, False)
        self.graphs = graphs and self.without_graph is None
        self.path = path
        require_signature(path, spec, _loaded(self.session.get_inputs()), _loaded(self.session.get_outputs()))

    def _open(self, path: Path, options: Any, graphs: bool) -> Any:
        ort = import_onnxruntime()
        try:
            with memory_errors(), huge_pages() if self._in_huge_pages(path.stem) else nullcontext():
                session = ort.InferenceSession(str(path), options, providers=self.place.providers(graphs))
                give_back_freed()
        except OutOfMemoryError:
            raise
        except Exception as error:
            if graphs:
                raise
            reason = str(error).splitlines()[0]
            raise BundleError(f"ONNX Runtime {ort.__version__} cannot load {path}: {reason}") from error
        if self.place.kind == "cuda" and "CUDAExecutionProvider" not in session.get_providers():
            raise BackendError(
                f"ONNX Runtime {ort.__version__} does not get CUDA to work on this machine: its CUDA and cuDNN "
                "libraries must be found (pip install 'bitdance-edge[gpu]'); run on the CPU with device='cpu'"
            )
        return session

    def _in_huge_pages(self, stage: str) -> bool:
        return self.place.kind == "cpu" and stage in READ_OFTEN and self.spec.weight_bytes >= HUGE_FROM

    def bind(self, buffers: Mapping[str, Memory]) -> Launch:
        require_memory_for(self.path.stem, self.spec, buffers)
        binding = self.session.io_binding()
        place = self.place
        for tensor in self.spec.inputs:
            buffer, dtype = buffers[tensor.name], element_type(tensor.dtype)
            binding.bind_input(tensor.name, place.kind, place.ordinal, dtype, buffer.shape, buffer.address)
        for tensor in self.spec.outputs:
            buffer, dtype = buffers[tensor.name], element_type(tensor.dtype)
            binding.bind_output(tensor.name, place.kind, place.ordinal, dtype, buffer.shape, buffer.address)
        options = None
        if place.kind == "cuda":
            options = import_onnxruntime().RunOptions()
            # A graph has the addresses of one binding, so that each has its own.
            options.add_run_config_entry("gpu_graph_id", str(next(self._graph_ids)) if self.graphs else NO_GRAPH)
        return BoundSession(self.session, binding, options, list(buffers.values()), self.time, self.path)

    def close(self) -> None:
        """End the operator trace, if there is one; the file is complete then.

        Raises:
            StorageError: it is cut short, which ONNX Runtime does not say.
        """
        if self.traced:
            self.traced = False
            require_whole(Path(self.session.end_profiling()))


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


def _loaded(tensors: Sequence[Any]) -> dict[str, tuple[str, Sequence[object]]]:
    """Inputs or outputs of a session as ``require_signature`` takes them."""
    return {tensor.name: (TYPES.get(tensor.type, tensor.type), tensor.shape) for tensor in tensors}


def element_type(dtype: str) -> Any:
    """As a binding takes it: numpy's type, or ONNX's number for what numpy lacks."""
    return BFLOAT16 if dtype == "bfloat16" else np.dtype(dtype)


def storage_type(dtype: str) -> np.dtype:
    """A numpy type of the same size."""
    return np.dtype("uint16" if dtype == "bfloat16" else dtype)


class BoundSession:
    """Runs the graph over its buffers, and keeps them: a binding holds addresses, not the memory behind them."""

    def __init__(
        self, session: Any, binding: Any, options: Any, memory: list[Memory], time: StageTime, path: Path
    ) -> None:
        self.session, self.binding, self.options, self.memory, self.time = session, binding, options, memory, time
        self.path = path

    def __call__(self) -> None:
        """Run the graph.

        Raises:
            OutOfMemoryError: there is too little memory.
            BundleError: the graph cannot take the values that the bundle has for it, such as ids of no class or token.
        """
        started = perf_counter()
        try:
            with memory_errors():
                self.session.run_with_iobinding(self.binding, self.options)
        except OutOfMemoryError:
            raise
        except Exception as error:  # onnxruntime's exceptions share no base class of their own
            raise BundleError(f"ONNX Runtime cannot run {self.path}: {str(error).splitlines()[0]}") from error
        self.time.add(perf_counter() - started)


@dataclass
class OnnxRuntimeBackend:
    """Either device through the same sessions and bindings."""

    bundle: Bundle
    threads: int | None = None
    trace: Path | None = None
    place: Provider = CPU
    builds: bool = True  # run what was built for this device where it fits; False: the bundle's own graphs
    run_ahead: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        import_onnxruntime()
        if self.place.kind == "cpu" and any(stage.precision == "bf16" for stage in self.bundle.stages.values()):
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
            try:
                self.trace.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise cannot_write(self.trace, error) from None

    @property
    def name(self) -> str:
        return f"onnxruntime-{self.place.kind}"

    def empty(self, shape: tuple[int, ...], dtype: str, *, ahead: bool = False) -> HostBuffer | CudaValueBuffer:
        zeros = np.zeros(shape, storage_type(dtype))
        if self.place.kind == "cpu":
            return HostBuffer(zeros)
        with memory_errors():
            value = import_onnxruntime().OrtValue.ortvalue_from_numpy(zeros, self.place.kind, self.place.ordinal)
        return CudaValueBuffer(value, shape, zeros.dtype)

    @cached_property
    def built(self) -> BuiltGraphs:
        """What was built of the bundle for this device."""
        return BuiltGraphs.find(self.bundle, self.place.target, import_onnxruntime().__version__)

    def load(self, stage: str) -> OnnxRuntimeStage:
        spec, graph = self.bundle.stage(stage), self.built.graph(stage) if self.builds else None
        graphs = self.place.kind == "cuda" and self.trace is None
        return OnnxRuntimeStage(
            graph or self.bundle.verified(stage),
            spec,
            self.place,
            self.threads or 0,
            self.trace,
            graphs=graphs,
            optimised=graph is not None and self.place.kind == "cpu",
        )

    def capture(self, launches: Sequence[Launch]) -> InOrder:
        return InOrder(launches)  # each launch is a graph of its own already

    def overwrite(self, target: Memory, source: Memory, rows: np.ndarray) -> Launch:
        """On a GPU by way of the host: ONNX Runtime copies whole tensors only, and these are small."""
        written, read = cast(HostBuffer | CudaValueBuffer, target), cast(HostBuffer | CudaValueBuffer, source)

        def copy() -> None:
            values = written.read()
            values[rows] = read.read()[rows]
            written.write(values)

        return copy

    def second_lane(self) -> "OnnxRuntimeBackend":
        return self

    def current(self) -> AbstractContextManager[None]:
        return nullcontext()

    def close(self) -> None:
        """Sessions and buffers own what they use, and give it back with their last reference."""
