"""What each layer costs by itself: everything as exported but one layer, on the inputs of the reference.

Layers that make bits (all but the decoder's) are judged by bits; so few turn when one layer is quantised that layers
are ranked by the change of the predictions whose signs the bits are, and for the encoder by that of the latent.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from bitdance_edge.calibration.layers import Layer
from bitdance_edge.calibration.recording import DataSet, Sample
from bitdance_edge.calibration.sessions import session_of, with_outputs
from bitdance_edge.calibration.stage_run import StageRun
from bitdance_edge.calibration.trials import Trial
from bitdance_edge.calibration.variants import Variants
from bitdance_edge.runtime.bundle.files import written_whole
from bitdance_edge.runtime.bundle.stage_names import LOOP_STAGES


@dataclass(frozen=True)
class Sensitivity:
    """``error``: root mean square change of predictions (generator), latents (encoder) or levels of 255 (decoder)."""

    layer: Layer
    format: str
    error: float
    flips: float | None  # share of bits; None for the decoder, which makes none


def sensitivities(
    variants: Variants, formats: Mapping[str, str], trial: Trial, data: DataSet, path: Path
) -> list[Sensitivity]:
    """One layer after the other, in the order of the graphs.

    Args:
        formats: name of a layer -> the format that it would have.
        trial: generations that judge the layers of the generator.
        data: recorded images that judge those of decoder and encoder.
        path: file that keeps what is measured, so that a stopped run goes on from there.
    """
    known: dict[str, list] = json.loads(path.read_text()) if path.is_file() else {}
    layers = [layer for found in variants.layers.values() for layer in found if layer.name in formats]
    judges = {
        stage: ImageStage(variants, stage, data.samples(stage))
        for stage in ("decoder", "encoder")
        if variants.layers.get(stage)
    }
    found = []
    for layer in tqdm(layers, desc="one layer at a time", unit="layer", leave=False, disable=None):
        if layer.name not in known:
            alone = {layer.name: formats[layer.name]}
            if layer.stage in LOOP_STAGES:
                outcome = trial.forced(variants.sessions(alone))
                loss = outcome.error(trial.reference), outcome.flips(trial.reference) / trial.bits
            else:
                loss = judges[layer.stage].loss(alone)
            known[layer.name] = list(loss)
            with written_whole(path) as file:
                file.write(json.dumps(known).encode())
        error, flips = known[layer.name]
        found.append(Sensitivity(layer, formats[layer.name], error, flips))
    return found


class ImageStage:
    """Decoder or encoder on samples, quantised and not; ``reference`` is what it gives as exported."""

    def __init__(self, variants: Variants, stage: str, samples: Iterable[Sample]) -> None:
        self.variants, self.stage = variants, stage
        self.samples = list(samples)
        self.output = "pixels" if stage == "decoder" else _latent(variants, stage)
        self.reference = self._run({})

    def loss(self, formats: Mapping[str, str]) -> tuple[float, float | None]:
        """Root mean square change, and for the encoder the share of bits that turn."""
        got = self._run(formats)
        error = float(np.sqrt(np.mean(np.square(got - self.reference))))
        return error, None if self.stage == "decoder" else float(np.mean((got > 0) != (self.reference > 0)))

    def _run(self, formats: Mapping[str, str]) -> np.ndarray:
        model = with_outputs(self.variants.graph(self.stage, formats), [self.output])
        session: Any = session_of(model, self.variants.folder(self.stage), self.variants.threads)
        run = StageRun(self.variants.bundle, self.stage, session)
        return np.concatenate([run(sample, [self.output])[0] for sample in self.samples]).astype(np.float64)


def _latent(variants: Variants, stage: str) -> str:
    """The tensor whose signs are the encoder's bits: what its comparison with zero reads."""
    compared = [node.input[0] for node in variants.skeletons[stage].graph.node if node.op_type == "Greater"]
    return compared[-1] if compared else "tokens"


def ranked(found: Sequence[Sensitivity], stages: Sequence[str]) -> list[Sensitivity]:
    """Those of some stages, the most sensitive first."""
    return sorted((item for item in found if item.layer.stage in stages), key=lambda item: -item.error)
