"""Other runtimes on a bundle's own graphs, under this project's loop: what the graphs alone give a user.

ONNX Runtime has the options that it comes with. OpenVINO runs in float32; a stage with an operator that it lacks is run
by ONNX Runtime. In bfloat16 it is this project's own backend for the device cpu:bf16.
"""

import importlib.util
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import numpy as np

from bitdance_edge.bench.errors import BenchError
from bitdance_edge.runtime.backends.interface import Backend, Buffer, InOrder, Launch, Memory, Stage, StageTime
from bitdance_edge.runtime.backends.onnxruntime import (
    BoundSession,
    OnnxRuntimeBackend,
    bind_tensors,
    import_onnxruntime,
)
from bitdance_edge.runtime.backends.openvino import OpenVinoBackend, OpenVinoStage, open_stage
from bitdance_edge.runtime.backends.processor import float32_path, int8_path
from bitdance_edge.runtime.bundle.manifest import Bundle
from bitdance_edge.runtime.bundle.specs import StageSpec

OURS = "ours"
PEERS = {
    "onnxruntime": "ONNX Runtime, plain",
    "openvino": "OpenVINO float32",
    "openvino-bf16": "OpenVINO bfloat16",
}
OPENVINO = ("openvino", "openvino-bf16")


def require_openvino() -> None:
    """Check that OpenVINO is installed.

    Raises:
        BenchError: it is not.
    """
    if importlib.util.find_spec("openvino") is None:
        raise BenchError("openvino is not installed, and --against needs it: pip install 'bitdance-edge[openvino]'")


def backend_of(kind: str, bundle: Bundle, threads: int) -> Backend:
    """The backend of a contender that runs a bundle: ``OURS``, with what was built for this processor, or a peer."""
    if kind == OURS:
        return OnnxRuntimeBackend(bundle, threads)
    if kind == "openvino-bf16":
        return OpenVinoBackend(bundle, threads)

    def plain(stage: str) -> Stage:
        return PlainStage(bundle, stage, threads)

    def in_openvino(stage: str) -> Stage:
        return open_stage(bundle.verified(stage), bundle.stage(stage), threads, "f32") or plain(stage)

    return PeerBackend(bundle, plain if kind == "onnxruntime" else in_openvino)


def instructions(stage: Stage | None, spec: StageSpec) -> str:
    """How a stage multiplies that was loaded, or would be loaded by ONNX Runtime."""
    return stage.instructions if isinstance(stage, OpenVinoStage) else products(spec)


def products(spec: StageSpec) -> str:
    """How ONNX Runtime multiplies in a stage."""
    return int8_path().why if spec.precision == "int8" else f"{float32_path()} in float32, neither VNNI nor AMX"


@dataclass
class PeerBackend:
    """Memory of the host, and stages of another runtime (a ``Backend``)."""

    bundle: Bundle
    make: Callable[[str], Stage]  # name of a stage -> the stage
    name: str = field(default="peer", init=False)
    run_ahead: int = field(default=0, init=False)
    loaded: dict[str, Stage] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self._host = OnnxRuntimeBackend(self.bundle, builds=False)

    def empty(self, shape: tuple[int, ...], dtype: str, *, ahead: bool = False) -> Buffer:
        return self._host.empty(shape, dtype, ahead=ahead)

    def load(self, stage: str) -> Stage:
        self.loaded[stage] = self.make(stage)
        return self.loaded[stage]

    def capture(self, launches: Sequence[Launch]) -> InOrder:
        return InOrder(launches)

    def overwrite(self, target: Memory, source: Memory, rows: np.ndarray) -> Launch:
        return self._host.overwrite(target, source, rows)

    def second_lane(self) -> "PeerBackend":
        return self

    def trim(self, stages: Iterable[Stage]) -> None:
        self._host.trim(stages)

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

    def bind(self, buffers: Mapping[str, Memory]) -> Launch:
        binding = bind_tensors(self.session, self.spec, buffers, "cpu", 0)
        return BoundSession(self.session, binding, list(buffers.values()), self.time, self.path)

    def close(self) -> None:
        """The session is freed with its last reference."""
