"""Graphs in memory as ONNX Runtime sessions; weights that a graph left in the bundle are read from there."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from onnx import ModelProto, TensorProto, ValueInfoProto

from bitdance_edge.runtime.backends.choice import Choice
from bitdance_edge.runtime.backends.interface import Backend, StageTime
from bitdance_edge.runtime.backends.onnxruntime import (
    CPU,
    OnnxRuntimeBackend,
    OnnxRuntimeStage,
    cpu_options,
    import_onnxruntime,
)
from bitdance_edge.runtime.bundle.manifest import Bundle
from bitdance_edge.runtime.errors import BackendError
from bitdance_edge.runtime.pipeline import Pipeline

QUANTIZED = {TensorProto.FLOAT8E4M3FN: "fp8", TensorProto.INT8: "int8", TensorProto.INT4: "int4"}


def session_of(model: ModelProto, folder: Path, threads: int | None) -> Any:
    """A session of a graph whose external weights are in ``folder``."""
    held = {tensor.data_type for tensor in model.graph.initializer}
    options = cpu_options(threads or 0, next((name for kind, name in QUANTIZED.items() if kind in held), "fp32"))
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    try:
        return import_onnxruntime().InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # onnxruntime's exceptions share no base class of their own
        raise BackendError(f"ONNX Runtime cannot run the graph: {str(error).splitlines()[0]}") from error


def with_outputs(skeleton: ModelProto, names: Sequence[str]) -> ModelProto:
    """A copy of a graph that also gives these tensors of its inside (inputs and constants are left out)."""
    model = ModelProto()
    model.CopyFrom(skeleton)
    given = {value.name for value in (*model.graph.output, *model.graph.input)}
    inferred = {value.name: value for value in model.graph.value_info}
    for name in dict.fromkeys(names):
        if name not in given:
            model.graph.output.append(inferred.get(name, ValueInfoProto(name=name)))
    return model


class _SessionStage(OnnxRuntimeStage):
    def __init__(self, session: Any, bundle: Bundle, stage: str) -> None:
        self.session, self.spec, self.place = session, bundle.stage(stage), CPU
        self.traced, self.time = False, StageTime()


class VariantBackend(OnnxRuntimeBackend):
    """ONNX Runtime on a bundle some of whose stages are given as sessions."""

    def __init__(self, bundle: Bundle, threads: int | None, sessions: Mapping[str, Any]) -> None:
        super().__init__(bundle, threads)
        self.sessions = sessions

    def load(self, stage: str) -> OnnxRuntimeStage:
        if stage in self.sessions:
            return _SessionStage(self.sessions[stage], self.bundle, stage)
        return super().load(stage)


def pipeline_on(bundle: Bundle, backend: Backend, max_batch: int) -> Pipeline:
    """A pipeline on a backend of one's own, on the CPU."""
    return Pipeline(bundle, backend, Choice(backend=backend.name, device="cpu"), max_batch)
