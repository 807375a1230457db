"""A bundle's stages, and variants of them in memory, as ONNX Runtime sessions on the CPU: one by one, or as a pipeline.

What was built for this machine is not used: what is recorded and measured follows from the bundle's own graphs alone.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, ValueInfoProto

from bitdance_edge.calibration.emulate import on_this_cpu
from bitdance_edge.runtime import Pipeline
from bitdance_edge.runtime.backends.choice import Choice
from bitdance_edge.runtime.backends.interface import Backend, Buffer, InOrder, Launch, Memory, Stage, StageTime
from bitdance_edge.runtime.backends.observed import ObservedBackend, Observer
from bitdance_edge.runtime.backends.onnxruntime import (
    BoundSession,
    OnnxRuntimeBackend,
    bind_tensors,
    cpu_options,
    import_onnxruntime,
)
from bitdance_edge.runtime.bundle.graph_file import read_graph
from bitdance_edge.runtime.bundle.linked_files import follow_links, has_links
from bitdance_edge.runtime.bundle.manifest import Bundle
from bitdance_edge.runtime.bundle.specs import StageSpec
from bitdance_edge.runtime.errors import BackendError

QUANTISED = {TensorProto.FLOAT8E4M3FN: "fp8", TensorProto.INT8: "int8", TensorProto.INT4: "int4"}
EMULATED = ("nvfp4",)  # precisions of stages that no CPU runs as they are
CACHE_INPUT, CACHE_OUTPUT = "past_key_values.", "present."  # first part of the names of the backbone's cache


class BundleSessions:
    """Sessions of a bundle's stages, each opened when it is first used."""

    def __init__(self, bundle: Bundle, threads: int | None) -> None:
        """Open nothing yet.

        Args:
            threads: of each session; None: one a physical core.

        Raises:
            BackendError: no CPU computes in the bundle's element type.
        """
        self.bundle, self.threads = bundle, threads
        # Stages that are emulated are opened here, and are no reason for the backend to refuse the others.
        stages = {
            name: replace(stage, precision="fp32") if stage.precision in EMULATED else stage
            for name, stage in bundle.stages.items()
        }
        self._backend = OnnxRuntimeBackend(replace(bundle, stages=stages), threads, builds=False)
        self._open: dict[str, Any] = {}

    def __getitem__(self, stage: str) -> Any:
        """The session of a stage, whose files are checked before it is opened."""
        if stage not in self._open:
            if self.bundle.stage(stage).precision in EMULATED:
                path = self.bundle.verified(stage)
                model = on_this_cpu(read_graph(path, onnx.load), path.parent)
                self._open[stage] = session_of(model, path.parent, self.threads)
            else:
                self._open[stage] = self._backend.load(stage).session
        return self._open[stage]

    def run(self, stage: str) -> "StageRun":
        return StageRun(self.bundle.stage(stage), self[stage])

    def pipeline(
        self,
        max_batch: int,
        replaced: Mapping[str, Any] | None = None,
        before: Observer | None = None,
        after: Observer | None = None,
    ) -> Pipeline:
        """Make a pipeline over these sessions.

        Args:
            replaced: stage -> session that runs in its place.
            before, after: called ahead of and behind every launch.
        """
        backend = _SessionBackend(self._backend, self, replaced or {})
        return pipeline_on(self.bundle, ObservedBackend(backend, before, after), max_batch)


@dataclass(frozen=True)
class _SessionBackend:
    """ONNX Runtime's memory on the CPU, and stages over sessions that are open already (a ``Backend``)."""

    host: OnnxRuntimeBackend
    sessions: BundleSessions
    replaced: Mapping[str, Any]

    @property
    def name(self) -> str:
        return self.host.name

    @property
    def run_ahead(self) -> int:
        return self.host.run_ahead

    def empty(self, shape: tuple[int, ...], dtype: str, *, ahead: bool = False) -> Buffer:
        return self.host.empty(shape, dtype, ahead=ahead)

    def load(self, stage: str) -> "_SessionStage":
        session = self.replaced[stage] if stage in self.replaced else self.sessions[stage]
        return _SessionStage(self.sessions.bundle.stage(stage), session)

    def capture(self, launches: Sequence[Launch]) -> InOrder:
        return InOrder(launches)

    def overwrite(self, target: Memory, source: Memory, rows: np.ndarray) -> Launch:
        return self.host.overwrite(target, source, rows)

    def second_lane(self) -> "_SessionBackend":
        return self

    def trim(self, stages: Iterable[Stage]) -> None:
        self.host.trim(stages)

    def current(self) -> AbstractContextManager[None]:
        return self.host.current()

    def close(self) -> None:
        """Leave the sessions open: they serve other pipelines too."""


class _SessionStage:
    """A stage over a session that is open already (a ``Stage``)."""

    def __init__(self, spec: StageSpec, session: Any) -> None:
        self.spec, self.session, self.time = spec, session, StageTime()

    def bind(self, buffers: Mapping[str, Memory]) -> Launch:
        binding = bind_tensors(self.session, self.spec, buffers, "cpu", 0)
        return BoundSession(self.session, binding, list(buffers.values()), self.time, Path(self.spec.graph.path))

    def close(self) -> None:
        """Leave the session open."""


class StageRun:
    """One stage, launch after launch. The cache is carried from each launch of an image to the next."""

    def __init__(self, spec: StageSpec, session: Any) -> None:
        self.spec, self.session = spec, session
        self.cache: dict[str, np.ndarray] = {}

    @property
    def outputs(self) -> list[str]:
        """The outputs other than the cache."""
        return [tensor.name for tensor in self.spec.outputs if not tensor.name.startswith(CACHE_OUTPUT)]

    def __call__(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str], first: bool) -> list[np.ndarray]:
        """Run one launch and return the outputs of these names.

        Args:
            inputs: of the launch, without the cache.
            first: whether it is the first of an image, which has an empty cache.
        """
        if first:
            rows = next(iter(inputs.values())).shape[0]
            self.cache = {
                tensor.name: np.zeros(tensor.sized({"R": rows}), tensor.dtype)
                for tensor in self.spec.inputs
                if tensor.name.startswith(CACHE_INPUT)
            }
        written = [name.replace(CACHE_INPUT, CACHE_OUTPUT, 1) for name in self.cache]
        results = self.session.run([*outputs, *written], {**inputs, **self.cache})
        self.cache = dict(zip(self.cache, results[len(outputs) :], strict=True))
        return results[: len(outputs)]


def session_of(model: ModelProto, folder: Path, threads: int | None) -> Any:
    """Open a session of a graph whose external weights are in ``folder``.

    Raises:
        BackendError: ONNX Runtime cannot run the graph.
    """
    stored = {tensor.data_type for tensor in model.graph.initializer}
    options = cpu_options(threads or 0, next((name for kind, name in QUANTISED.items() if kind in stored), "fp32"))
    if has_links((tensor.external_data for tensor in model.graph.initializer), folder):
        model, linked = ModelProto(), model
        model.CopyFrom(linked)
        folder = follow_links((tensor.external_data for tensor in model.graph.initializer), folder)
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    try:
        return import_onnxruntime().InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # onnxruntime's exceptions share no base class of their own
        raise BackendError(f"ONNX Runtime cannot run the graph: {str(error).splitlines()[0]}") from error


def with_outputs(skeleton: ModelProto, names: Sequence[str]) -> ModelProto:
    """Return a copy of a graph that also outputs these of its inner tensors; its own inputs and outputs are skipped."""
    model = ModelProto()
    model.CopyFrom(skeleton)
    given = {value.name for value in (*model.graph.output, *model.graph.input)}
    inferred = {value.name: value for value in model.graph.value_info}
    for name in dict.fromkeys(names):
        if name not in given:
            model.graph.output.append(inferred.get(name, ValueInfoProto(name=name)))
    return model


def pipeline_on(bundle: Bundle, backend: Backend, max_batch: int) -> Pipeline:
    """Return a pipeline on a given backend of the CPU."""
    return Pipeline(bundle, backend, Choice(backend=backend.name, device="cpu"), max_batch)
