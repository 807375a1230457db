"""Other runtimes on a bundle's own graphs, under this project's loop: what the graphs alone give a user.

ONNX Runtime has the options that it comes with; OpenVINO (https://docs.openvino.ai) is given one stream and the
precision that products run in. A stage with an operator that OpenVINO lacks is run by ONNX Runtime.
"""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, cast

import numpy as np

from bitdance_edge.bench.errors import BenchError
from bitdance_edge.runtime.backends.interface import Backend, Buffer, InOrder, Launch, Memory, StageTime
from bitdance_edge.runtime.backends.onnxruntime import (
    BoundSession,
    HostBuffer,
    OnnxRuntimeBackend,
    bind_tensors,
    import_onnxruntime,
)
from bitdance_edge.runtime.backends.processor import float32_path, int8_path
from bitdance_edge.runtime.bundle.manifest import Bundle
from bitdance_edge.runtime.bundle.specs import StageSpec

OURS = "ours"
PEERS = {
    "onnxruntime": "ONNX Runtime, plain",
    "openvino": "OpenVINO float32",
    "openvino-bf16": "OpenVINO bfloat16",
}
OPENVINO = {"openvino": "f32", "openvino-bf16": "bf16"}  # precision in which products run
MULTIPLYING = ("FullyConnected", "MatMul", "Convolution")  # kinds of OpenVINO's operators


def require_openvino() -> None:
    """Check that OpenVINO is installed.

    Raises:
        BenchError: it is not.
    """
    if importlib.util.find_spec("openvino") is None:
        raise BenchError("openvino is not installed, and --against needs it: pip install openvino==2026.4.0")


def backend_of(kind: str, bundle: Bundle, threads: int) -> Backend:
    """The backend of a contender that runs a bundle: ``OURS``, with what was built for this processor, or a peer."""
    if kind == OURS:
        return OnnxRuntimeBackend(bundle, threads)
    if kind == "onnxruntime":
        return PeerBackend(bundle, lambda stage: PlainStage(bundle, stage, threads))
    require_openvino()
    return PeerBackend(bundle, openvino_stages(bundle, threads, OPENVINO[kind]))


def products(spec: StageSpec) -> str:
    """How ONNX Runtime multiplies in a stage."""
    return int8_path().why if spec.precision == "int8" else f"{float32_path()} in float32, neither VNNI nor AMX"


@dataclass
class PeerBackend:
    """Memory of the host, and stages of another runtime (a ``Backend``)."""

    bundle: Bundle
    make: Callable[[str], Any]  # name of a stage -> the stage
    name: str = field(default="peer", init=False)
    run_ahead: int = field(default=0, init=False)
    stages: dict[str, Any] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self._host = OnnxRuntimeBackend(self.bundle, builds=False)

    def empty(self, shape: tuple[int, ...], dtype: str, *, ahead: bool = False) -> Buffer:
        return self._host.empty(shape, dtype, ahead=ahead)

    def load(self, stage: str) -> Any:
        self.stages[stage] = made = self.make(stage)
        return made

    def capture(self, launches: Sequence[Launch]) -> InOrder:
        return InOrder(launches)

    def overwrite(self, target: Memory, source: Memory, rows: np.ndarray) -> Launch:
        return self._host.overwrite(target, source, rows)

    def second_lane(self) -> "PeerBackend":
        return self

    def current(self) -> AbstractContextManager[None]:
        return self._host.current()

    def close(self) -> None:
        """Stages own what they use, and give it back with their last reference."""


class PlainStage:
    """A stage in ONNX Runtime, with the options that it comes with."""

    def __init__(self, bundle: Bundle, stage: str, threads: int) -> None:
        ort = import_onnxruntime()
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        self.path, self.spec, self.time = bundle.verified(stage), bundle.stage(stage), StageTime()
        self.session = ort.InferenceSession(str(self.path), options, providers=["CPUExecutionProvider"])
        self.instructions = products(self.spec)

    def bind(self, buffers: Mapping[str, Memory]) -> Launch:
        binding = bind_tensors(self.session, self.spec, buffers, "cpu", 0)
        return BoundSession(self.session, binding, list(buffers.values()), self.time, self.path)

    def close(self) -> None:
        """The session is freed with its last reference."""


def openvino_stages(bundle: Bundle, threads: int, precision: str) -> Callable[[str], Any]:
    """A function that opens one stage in OpenVINO, or in ONNX Runtime where OpenVINO cannot read it."""
    import openvino  # pyright: ignore[reportMissingImports]  not needed for anything else

    core = openvino.Core()
    options = {
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": precision,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
    }

    def make(stage: str) -> Any:
        path = bundle.verified(stage)
        try:
            model = core.read_model(str(path))
        except RuntimeError:  # an operator that it lacks
            return PlainStage(bundle, stage, threads)
        return OpenVinoStage(core.compile_model(model, "CPU", options))

    return make


class OpenVinoStage:
    """A stage compiled by OpenVINO, which reads and writes the loop's own memory."""

    def __init__(self, compiled: Any) -> None:
        self.compiled, self.time = compiled, StageTime()
        self.held: list[Any] = []

    def bind(self, buffers: Mapping[str, Memory]) -> Launch:
        import openvino  # pyright: ignore[reportMissingImports]

        request, held = self.compiled.create_infer_request(), []
        for port in (*self.compiled.inputs, *self.compiled.outputs):
            memory = next(buffer for name, buffer in buffers.items() if name in port.get_names())
            held.append(openvino.Tensor(cast(HostBuffer, memory).array, shared_memory=True))
            request.set_tensor(port, held[-1])

        def launch() -> None:
            started = perf_counter()
            request.infer()
            self.time.add(perf_counter() - started)

        self.held.extend(held)  # a request keeps addresses, not the memory behind them
        return launch

    @property
    def instructions(self) -> str:
        """Of its products, as OpenVINO names the kernels of the last launch."""
        operators = self.compiled.get_runtime_model().get_ops()
        found = {str(each.get_rt_info()["primitiveType"].astype(str)) for each in operators if _multiplies(each)}
        return ", ".join(sorted(found)) or "no products"

    def close(self) -> None:
        """The compiled graph is freed with its last reference."""


def _multiplies(operator: Any) -> bool:
    return operator.get_rt_info()["layerType"].astype(str) in MULTIPLYING
