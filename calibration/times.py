"""How much an error of the head matters at each sampling time: measured, by disturbing one evaluation at a time."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
from tqdm import tqdm

from bitdance_edge.calibration.trials import Trial
from bitdance_edge.runtime.backends.onnxruntime import HostBuffer
from bitdance_edge.runtime.bundle.files import written_whole

DISTURBANCE = 0.2  # standard deviation added to the head's clean prediction, whose values are around -1 and +1
MEASURED = 24  # evaluations disturbed; those between are interpolated


def time_effects(trial: Trial, steps: int, folder: Path) -> np.ndarray:
    """Float64 ``[steps + 1]``: share of the final bits that turn when the clean prediction is off at that step.

    The sampler takes ``x <- A x + B clean + C noise``, so that an error e of the clean prediction is ``B e`` of x.
    Half a bit is added to every count, so that no time counts for nothing. The counts are those of the bundle as
    exported, and are kept in ``folder`` for its next calibration.
    """
    measured = np.unique(np.linspace(0, steps, min(MEASURED, steps + 1)).round().astype(int))
    asked = json.dumps([trial.bundle.digest, asdict(trial.draw), DISTURBANCE, measured.tolist()], sort_keys=True)
    path = folder / f"times-{hashlib.sha256(asked.encode()).hexdigest()[:12]}.npy"
    if path.is_file():
        flips = np.load(path, allow_pickle=False)
    else:
        steps_shown = tqdm(measured, desc="effect of each time", unit="time", leave=False, disable=None)
        runs = (trial.forced({}, after=_Disturbance(int(step), steps)) for step in steps_shown)
        flips = np.array([run.flips(trial.reference) for run in runs])
        with written_whole(path) as file:
            np.save(file, flips, allow_pickle=False)
    return np.interp(np.arange(steps + 1), measured, (flips + 0.5) / trial.bits)


def weights(effects: np.ndarray) -> np.ndarray:
    """How much a sample of each time counts: squared effects, for errors add up in squares; their mean is 1."""
    return np.square(effects) / np.square(effects).mean()


class _Disturbance:
    def __init__(self, step: int, steps: int) -> None:
        self.step, self.steps, self.launches = step, steps, 0
        self.generator = np.random.default_rng(step)

    def __call__(self, stage: str, buffers: Mapping[str, HostBuffer]) -> None:
        if stage != "head":
            return
        if self.launches % (self.steps + 1) == self.step:
            x = buffers["x_next"].read()
            clean_share = buffers["coefficients"].read()[1]
            error = DISTURBANCE * self.generator.standard_normal(x.shape)
            buffers["x_next"].write(x + (clean_share * error).astype(np.float32))
        self.launches += 1
