"""Generations of one draw on variants of a bundle, with the same noise: the bits that come out, and how far off.

Under teacher forcing every patch is sampled on top of the reference's patches, so that an error is that of one patch
and does not grow; this is done by giving the ``tokens`` stage the reference's prediction in place of the variant's.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bitdance_edge.calibration.recording import Draw
from bitdance_edge.calibration.sessions import VariantBackend, pipeline_on
from bitdance_edge.runtime import PatchDone, Pipeline
from bitdance_edge.runtime.backends.observed import ObservedBackend, Observer
from bitdance_edge.runtime.backends.onnxruntime import HostBuffer, OnnxRuntimeBackend
from bitdance_edge.runtime.bundle.manifest import Bundle
from bitdance_edge.runtime.bundle.stage_names import LOOP_STAGES
from bitdance_edge.runtime.request import Request

BATCH = 16


@dataclass(frozen=True)
class Outcome:
    """What was sampled: ``predictions`` float32 ``[images, patches, P, C]``, whose signs are the bits."""

    predictions: np.ndarray

    @property
    def bits(self) -> np.ndarray:
        return self.predictions > 0

    @property
    def tokens(self) -> np.ndarray:
        """Tokens float32 ``[images, patches * P, C]`` of -1 and +1."""
        images, _, _, bits = self.predictions.shape
        return np.where(self.bits, np.float32(1), np.float32(-1)).reshape(images, -1, bits)

    def flips(self, reference: "Outcome") -> int:
        return int(np.sum(self.bits != reference.bits))

    def error(self, reference: "Outcome") -> float:
        """Root mean square difference of the predictions."""
        return float(np.sqrt(np.mean(np.square(self.predictions.astype(np.float64) - reference.predictions))))


class Trial:
    """A draw, generated once on the bundle itself and then on its variants."""

    def __init__(self, bundle: Bundle, draw: Draw, threads: int | None) -> None:
        self.bundle, self.draw, self.threads = bundle, draw, threads
        backend = OnnxRuntimeBackend(bundle, threads)
        self._sessions = {stage: backend.load(stage).session for stage in LOOP_STAGES}
        runs = list(self._runs({}))
        self._teacher = [prediction for run in runs for prediction in run.launches]  # of all rows
        self.reference = Outcome(np.concatenate([run.predictions for run in runs]))

    @property
    def bits(self) -> int:
        return self.reference.bits.size

    def free(self, sessions: Mapping[str, Any]) -> Outcome:
        """The variant on its own, with the noise of the reference."""
        return Outcome(np.concatenate([run.predictions for run in self._runs(sessions)]))

    def forced(self, sessions: Mapping[str, Any], after: Observer | None = None) -> Outcome:
        """The variant on top of the reference's patches."""
        return Outcome(np.concatenate([run.predictions for run in self._runs(sessions, forced=True, after=after)]))

    def _runs(
        self, sessions: Mapping[str, Any], forced: bool = False, after: Observer | None = None
    ) -> Iterator["_Run"]:
        backend = VariantBackend(self.bundle, self.threads, {**self._sessions, **sessions})
        launches = iter(self._teacher if forced else ())
        for request in self.draw.requests(self.bundle, BATCH):
            run = _Run(len(request.prompts or request.classes), (lambda: next(launches)) if forced else None)
            observed = ObservedBackend(backend, before=run.observe, after=after)
            with pipeline_on(self.bundle, observed, BATCH) as pipeline:
                run.generate(pipeline, request, self.draw.patches)
            yield run


class _Run:
    def __init__(self, images: int, teacher: Callable[[], np.ndarray] | None) -> None:
        self.images, self.teacher = images, teacher
        self.launches: list[np.ndarray] = []

    @property
    def predictions(self) -> np.ndarray:
        """Of the images' own rows: ``[images, patches, P, C]``."""
        return np.stack([launch[: self.images] for launch in self.launches], axis=1)

    def observe(self, stage: str, buffers: Mapping[str, HostBuffer]) -> None:
        if stage == "tokens":
            self.launches.append(buffers["x"].read())
            if self.teacher is not None:
                buffers["x"].write(self.teacher())

    def generate(self, pipeline: Pipeline, request: Request, patches: int | None) -> None:
        done = 0
        for event in pipeline.stream(request):
            done += isinstance(event, PatchDone)
            if done == patches:
                break
