"""ONNX Runtime on a CUDA GPU: all sessions of a lane on one stream, and a whole patch as one CUDA graph.

Launches, writes and fetches are queued on the lane's stream and return at once; only fetched values are waited for.
A patch is launched session by session the first time, and then captured: its launches are recorded once more, now that
ONNX Runtime has allocated what they use, and from then on one call replays them. Where that fails, each session
captures itself, which ONNX Runtime does after its own first run.
https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html
"""

import itertools
import logging
import weakref
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from time import perf_counter
from typing import Any, Literal, cast

from bitdance_edge.runtime.backends.built_graphs import BuiltGraphs
from bitdance_edge.runtime.backends.cuda_driver import DriverDevice, GraphCalls
from bitdance_edge.runtime.backends.cuda_graph import A_GRAPH, PATCH, CaptureError, CudaGraph
from bitdance_edge.runtime.backends.cuda_libraries import load_cuda_libraries
from bitdance_edge.runtime.backends.cuda_memory import CudaBuffer, CudaPart
from bitdance_edge.runtime.backends.gpu_backend import GpuBackend
from bitdance_edge.runtime.backends.interface import Launch, Memory, Stage, StageTime
from bitdance_edge.runtime.backends.onnxruntime import (
    LOG_SEVERITY,
    bind_tensors,
    cpu_options,
    import_onnxruntime,
    make_trace_folder,
    open_session,
    require_described,
    require_whole,
    run_bound,
    trace_session,
)
from bitdance_edge.runtime.backends.signature import require_memory_for
from bitdance_edge.runtime.bundle.manifest import Bundle
from bitdance_edge.runtime.bundle.stage_names import StageName
from bitdance_edge.runtime.errors import BackendError, BundleError

log = logging.getLogger(__name__)

PROVIDER = "CUDAExecutionProvider"
TARGET = "cuda"
CAPTURABLE = "can be part of a CUDA graph"
NO_GRAPH = "-1"  # of the run option gpu_graph_id: run, and capture nothing
SHRINKING = "memory.enable_memory_arena_shrinkage"  # run option: of the arenas of which devices
# What becomes a graph: a whole patch; each stage by itself, through ONNX Runtime's own capture; nothing.
Captures = Literal["patch", "stages", "none"]


class OnnxRuntimeCudaBackend(GpuBackend):
    """Sessions on one GPU.

    Args:
        trace: folder for an operator trace, which the launches of a graph would not be in; None: no trace.
        captures: the most that becomes a graph.

    Attributes:
        graphs: whether each loaded stage can be part of a CUDA graph, whether a patch is one, and otherwise why not.
        calls: to the device that run something: sessions, or graphs of them.

    Raises:
        BackendError: ONNX Runtime is not installed, or the driver refuses.
    """

    name = "onnxruntime-cuda"

    def __init__(
        self,
        bundle: Bundle,
        ordinal: int = 0,
        threads: int | None = None,
        trace: Path | None = None,
        captures: Captures = "patch",
    ) -> None:
        ort = import_onnxruntime()
        ort.set_default_logger_severity(LOG_SEVERITY)  # it warns of every session that CUDA is no plugin
        self.missing_libraries = load_cuda_libraries(getattr(ort, "cuda_version", "") or "13")
        self.bundle, self.threads, self.trace = bundle, threads, trace
        self.captures: Captures = "none" if trace is not None else captures
        self.graphs: dict[str, str] = {}
        self.calls = 0
        if trace is not None:
            make_trace_folder(trace)
        self.open_lane(DriverDevice(ordinal))

    @cached_property
    def built(self) -> BuiltGraphs:
        """What was built of the bundle for this device."""
        return BuiltGraphs.find(self.bundle, TARGET, import_onnxruntime().__version__)

    def load(self, stage: str) -> "CudaStage":
        self.stages.append(CudaStage(self, stage))
        return self.stages[-1]

    def capture(self, launches: Sequence[Launch]) -> "CapturedPatch":
        patch = CapturedPatch(self, launches)
        self.captured.append(patch)
        return patch

    def trim(self, stages: Iterable[Stage]) -> None:
        """Have ONNX Runtime empty its sessions' arenas, whose blocks serve no larger tensors and would pile up.

        Graphs have addresses of such blocks: what was captured is captured again when it is next launched.
        """
        trimmed = [cast(CudaStage, stage) for stage in stages]
        for patch in self.captured:
            assert isinstance(patch, CapturedPatch)
            if not patch.stages.isdisjoint(trimmed):
                patch.drop_graph()
        for stage in trimmed:
            stage.trim()

    def second_lane(self) -> "OnnxRuntimeCudaBackend":
        sibling = object.__new__(OnnxRuntimeCudaBackend)
        sibling.__dict__.update(self.__dict__)  # one bundle, one report, the builds already found
        sibling.open_lane(self.device)
        self.siblings.append(sibling)
        return sibling

    def not_a_graph(self, what: str, reason: str) -> None:
        """Report why a stage, or the patch, is not a CUDA graph."""
        self.graphs[what] = f"not a CUDA graph: {reason}"
        log.warning("%s is not a CUDA graph: %s", what, reason)


class CudaStage:
    """One session on the stream of its backend's lane."""

    def __init__(self, backend: OnnxRuntimeCudaBackend, name: str) -> None:
        self.backend, self.name, self.time = backend, str(name), StageTime()
        self.spec = backend.bundle.stage(name)
        self._graph_ids = itertools.count(1)
        self._bound: weakref.WeakSet[BoundCudaSession] = weakref.WeakSet()
        self.last: weakref.ref[BoundCudaSession] | None = None  # that was launched
        self.path = path = backend.built.graph(name) or backend.bundle.verified(name)
        options = cpu_options(backend.threads or 0)
        # Reuse is planned by equal sizes and holds what it hands on until its last reuse, which takes more memory.
        options.enable_mem_reuse = False
        trace_session(options, backend.trace, name)
        self.capturable = backend.captures != "none"
        try:
            self.session: Any = open_session(path, options, self._providers(self.capturable))
            backend.graphs.update({self.name: CAPTURABLE} if self.capturable else {})
        except BundleError as error:
            if not self.capturable:
                raise
            # Also where it would not load at all: the second attempt says so without a word of graphs.
            self.session = open_session(path, options, self._providers(False))
            self.capturable = False
            backend.not_a_graph(self.name, str(error.__cause__).splitlines()[0])
        if PROVIDER not in self.session.get_providers():
            raise BackendError(_unavailable(backend.missing_libraries))
        require_described(path, self.spec, self.session)

    def _providers(self, graphs: bool) -> list[Any]:
        """The providers of a session, and their options."""
        # TensorFloat-32 keeps ten bits of a float32. Where it is forbidden, ONNX Runtime keeps convolutions of every
        # element type off the tensor cores, and complains of each in 16 bits that has no other kernel.
        reduced = self.name in (StageName.DECODER, StageName.ENCODER) and self.spec.precision != "fp32"
        options = {
            "device_id": str(self.backend.device.ordinal),
            "user_compute_stream": str(self.backend.lane.stream.handle),
            "enable_cuda_graph": "1" if graphs else "0",
            "use_tf32": "1" if reduced else "0",
            "arena_extend_strategy": "kSameAsRequested",  # by default the arena doubles
            "cudnn_conv_algo_search": "HEURISTIC",  # by default algorithms are timed, and may differ from run to run
        }
        return [(PROVIDER, options), "CPUExecutionProvider"]

    @property
    def captures_itself(self) -> bool:
        """Whether launches are graphs of ONNX Runtime's own, while whose capture no thread may allocate."""
        return self.capturable and self.backend.captures == "stages"

    def bind(self, buffers: Mapping[str, Memory]) -> "BoundCudaSession":
        require_memory_for(self.name, self.spec, buffers)
        bound = BoundCudaSession(self, buffers, str(next(self._graph_ids)))
        self._bound.add(bound)
        return bound

    def trim(self) -> None:
        """Repeat the last launch, behind which its arena is emptied: the only way that ONNX Runtime has."""
        last, self.last = self.last() if self.last is not None else None, None
        if last is not None and last.can_run and not self.captures_itself:
            last.run(run_options(NO_GRAPH, emptied=self.backend.device.ordinal))
            self.last = None  # its buffers are about to be freed

    def close(self) -> None:
        """End the operator trace, if there is one, and let the session go; its launches are not to be used again.

        Raises:
            StorageError: the trace is cut short.
        """
        session, self.session = self.session, None
        for bound in self._bound:  # also where a launch is still referenced, its session goes before the stream
            bound.binding = None
        if session is not None and self.backend.trace is not None:
            require_whole(Path(session.end_profiling()))


class BoundCudaSession:
    """Runs the graph over its buffers, and keeps them: a binding holds addresses, not the memory behind them."""

    def __init__(self, stage: CudaStage, buffers: Mapping[str, Memory], graph_id: str) -> None:
        self.stage, self.memory = stage, cast(dict[str, CudaBuffer | CudaPart], dict(buffers))
        self.binding: Any = bind_tensors(stage.session, stage.spec, buffers, "cuda", stage.backend.device.ordinal)
        self._plain, self._graph = run_options(NO_GRAPH), run_options(graph_id)
        self._warm = False

    def __call__(self) -> None:
        started = perf_counter()
        self.run(self._graph if self._warm and self.stage.captures_itself else self._plain)
        self._warm = True
        self.stage.backend.calls += 1
        self.stage.time.add(perf_counter() - started)

    @property
    def can_run(self) -> bool:
        """Whether neither its session was closed nor any of its buffers freed."""
        return self.stage.session is not None and not any(memory.freed for memory in self.memory.values())

    def record(self) -> None:
        """Queue the kernels on a stream that is being captured.

        Raises:
            CaptureError: ONNX Runtime does what a graph cannot hold.
        """
        try:
            self.run(self._plain)
        except BundleError as error:
            raise CaptureError(str(error)) from error

    def run(self, options: Any) -> None:
        """Run the graph with these options; raises what ``run_bound`` does."""
        if self.stage.session is None:
            raise BackendError(f"{self.stage.name} was closed")
        self.stage.last = weakref.ref(self)
        run_bound(self.stage.session, self.binding, options, self.stage.path)


def run_options(graph_id: str, emptied: int | None = None) -> Any:
    """Options of a launch that returns as soon as its kernels are queued.

    Args:
        emptied: the device whose arena is emptied behind the launch, which is waited for then.
    """
    options = import_onnxruntime().RunOptions()
    options.add_run_config_entry("gpu_graph_id", graph_id)  # a graph has the addresses of one binding
    if emptied is None:
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")
    else:
        options.add_run_config_entry(SHRINKING, f"gpu:{emptied}")
    return options


class CapturedPatch:
    """Launches that become one CUDA graph when they have run once."""

    def __init__(self, backend: OnnxRuntimeCudaBackend, launches: Sequence[Launch]) -> None:
        self.backend, self.launches = backend, launches
        self.stages = {launch.stage for launch in launches if isinstance(launch, BoundCudaSession)}
        self.graph: CudaGraph | None = None
        self._tried = False

    def __call__(self) -> None:
        if self.graph is not None:
            self.graph()
            self.backend.calls += 1
            return
        for launch in self.launches:
            launch()
        if not self._tried and self.backend.captures == "patch":
            self._capture()
        self._tried = True

    def close(self) -> None:
        self.drop_graph()
        self.backend.forget(self)

    def drop_graph(self) -> None:
        """Free the graph; the next call launches one by one, and captures again."""
        if self.graph is not None:
            self.backend.lane.synchronize()
            self.graph.close()
            self.graph, self._tried = None, False

    def _capture(self) -> None:
        # Behind the launches and on their thread, for which ONNX Runtime has its handles of cuBLAS and cuDNN by now.
        backend = self.backend
        try:
            for stage in self.stages:
                if not stage.capturable:
                    raise CaptureError(f"{stage.name} is not capturable")
            recorded = [each.record if isinstance(each, BoundCudaSession) else each for each in self.launches]
            self.graph = CudaGraph(GraphCalls(), backend.lane.stream, recorded)
            backend.graphs[PATCH] = A_GRAPH
        except CaptureError as error:
            backend.captures = "stages"
            backend.not_a_graph(PATCH, str(error))


def _unavailable(missing: Sequence[str]) -> str:
    ort = import_onnxruntime()
    found = f"; not found: {', '.join(missing)}" if missing else ""
    return (
        f"ONNX Runtime {ort.__version__} does not get CUDA to work on this machine: its CUDA and cuDNN libraries must "
        f"be found (pip install 'bitdance-edge[gpu]'){found}; run on the CPU with device='cpu'"
    )
