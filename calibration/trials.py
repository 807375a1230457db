"""Generations of one draw on variants of a bundle, with the same noise: the bits sampled, and how far off they are.

Under teacher forcing every patch is sampled on top of the reference's patches, so that an error is that of one patch
and does not grow; this is done by giving the ``tokens`` stage the reference's prediction in place of the variant's.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from bitdance_edge.calibration.kept import kept_array
from bitdance_edge.calibration.recipe import Draw
from bitdance_edge.calibration.sessions import BundleSessions
from bitdance_edge.runtime import PatchDone, Pipeline
from bitdance_edge.runtime.backends.observed import Observer
from bitdance_edge.runtime.backends.onnxruntime import HostBuffer
from bitdance_edge.runtime.bundle.files import written_whole
from bitdance_edge.runtime.bundle.stage_names import StageName
from bitdance_edge.runtime.request import Request

BATCH = 16
DISTURBANCE = 0.2  # standard deviation added to the head's clean prediction, whose values are around -1 and +1
MEASURED = 24  # evaluations disturbed; those between are interpolated


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
        """The number of bits that differ."""
        return int(np.sum(self.bits != reference.bits))

    def error(self, reference: "Outcome") -> float:
        """Root mean square difference of the predictions."""
        return float(np.sqrt(np.mean(np.square(self.predictions.astype(np.float64) - reference.predictions))))


class Trial:
    """A draw, generated once on the bundle itself and then on its variants, which are given as sessions by stage."""

    def __init__(self, sessions: BundleSessions, draw: Draw) -> None:
        self.sessions, self.draw = sessions, draw
        runs = list(self._runs({}))
        self._teacher = [prediction for run in runs for prediction in run.launches]  # of all rows
        self.reference = Outcome(np.concatenate([run.predictions for run in runs]))

    @property
    def bits(self) -> int:
        """The number of bits of all images."""
        return self.reference.bits.size

    def free(self, replaced: Mapping[str, Any]) -> Outcome:
        """Run the variant on its own, with the noise of the reference."""
        return Outcome(np.concatenate([run.predictions for run in self._runs(replaced)]))

    def forced(self, replaced: Mapping[str, Any], after: Observer | None = None) -> Outcome:
        """Run the variant on top of the reference's patches."""
        return Outcome(np.concatenate([run.predictions for run in self._runs(replaced, forced=True, after=after)]))

    def forced_flips(self, replaced: Mapping[str, Any]) -> float:
        """The share of bits that flip under teacher forcing."""
        return self.forced(replaced).flips(self.reference) / self.bits

    def _runs(
        self, replaced: Mapping[str, Any], forced: bool = False, after: Observer | None = None
    ) -> Iterator["_Run"]:
        launches = iter(self._teacher if forced else ())
        for request in self.draw.requests(self.sessions.bundle.model, BATCH):
            run = _Run(len(request.subjects), (lambda: next(launches)) if forced else None)
            with self.sessions.pipeline(BATCH, replaced, before=run.observe, after=after) as pipeline:
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
        if stage == StageName.TOKENS:
            self.launches.append(buffers["x"].read())
            if self.teacher is not None:
                buffers["x"].write(self.teacher())

    def generate(self, pipeline: Pipeline, request: Request, patches: int | None) -> None:
        done = 0
        for event in pipeline.stream(request):
            done += isinstance(event, PatchDone)
            if done == patches:
                break


def decoded(sessions: BundleSessions, tokens: np.ndarray, draw: Draw, batch: int = BATCH) -> np.ndarray:
    """Decode tokens ``[images, K, C]`` to pixels uint8 ``[images, H, W, 3]``.

    Where K is a part of an image, that part is repeated over the whole.
    """
    model = sessions.bundle.model
    shape = (draw.image_size(model).tokens, model.bits)
    whole = [np.resize(one, shape) for one in tokens]
    parts = [np.stack(whole[first : first + batch]) for first in range(0, len(whole), batch)]
    with sessions.pipeline(batch) as pipeline:
        return np.concatenate([pipeline.decode(part, size=draw.size) for part in parts])


def time_effects(trial: Trial, steps: int, folder: Path) -> np.ndarray:
    """Measure how much an error of the head matters at each sampling time, by disturbing one evaluation at a time.

    The sampler takes ``x <- A x + B clean + C noise``, so that an error e of the clean prediction is ``B e`` of x.
    Half a bit is added to every count, so that no time counts for nothing. The counts are those of the bundle as
    exported, and are kept in ``folder`` for its next calibration.

    Returns:
        Float64 ``[steps + 1]``: the share of the final bits that flip when the clean prediction is off at that step.
    """
    measured = np.unique(np.linspace(0, steps, min(MEASURED, steps + 1)).round().astype(int))
    asked = [trial.sessions.bundle.digest, asdict(trial.draw), DISTURBANCE, measured.tolist()]
    key = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:12]
    path = folder / f"times-{key}.npy"
    if path.is_file():
        flips = kept_array(path, length=len(measured))
    else:
        shown = tqdm(measured, desc="effect of each time", unit="time", leave=False, disable=None)
        runs = (trial.forced({}, after=_Disturbance(int(step), steps)) for step in shown)
        flips = np.array([run.flips(trial.reference) for run in runs])
        with written_whole(path) as file:
            np.save(file, flips, allow_pickle=False)
    return np.interp(np.arange(steps + 1), measured, (flips + 0.5) / trial.bits)


class _Disturbance:
    """Adds noise to the clean prediction of one sampling step (an ``Observer``)."""

    def __init__(self, step: int, steps: int) -> None:
        self.step, self.steps, self.launches = step, steps, 0
        self.generator = np.random.default_rng(step)

    def __call__(self, stage: str, buffers: Mapping[str, HostBuffer]) -> None:
        if stage != StageName.HEAD:
            return
        if self.launches % (self.steps + 1) == self.step:
            x = buffers["x_next"].read()
            clean_share = buffers["coefficients"].read()[1]
            error = DISTURBANCE * self.generator.standard_normal(x.shape)
            buffers["x_next"].write(x + (clean_share * error).astype(np.float32))
        self.launches += 1
