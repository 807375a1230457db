"""Step 3, search: the fewest layers to keep as exported so that a budget of bit flips holds.

First, what each layer costs by itself: everything as exported but one layer, on the inputs of the reference. Layers
that make bits (all but the decoder's) are judged by bits; so few flip when one layer is quantised that layers are
ranked by the change of the predictions whose signs the bits are, and for the encoder by that of the latent. Then a
bisection over how many of the most sensitive ones are kept, on other images.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from bitdance_edge.calibration.choose import Chosen
from bitdance_edge.calibration.graphs import Layer, StageGraph
from bitdance_edge.calibration.kept import kept_losses
from bitdance_edge.calibration.quantise import Variants
from bitdance_edge.calibration.record import DataSet, Sample
from bitdance_edge.calibration.sessions import StageRun
from bitdance_edge.calibration.trials import Trial, decoded
from bitdance_edge.runtime.bundle.files import written_whole
from bitdance_edge.runtime.bundle.stage_names import LOOP_STAGES, StageName

GENERATOR, ENCODER = "generator", "encoder"  # the two parts that make bits, each with a search of its own
STAGES = {GENERATOR: LOOP_STAGES, ENCODER: (StageName.ENCODER,)}


@dataclass(frozen=True)
class Sensitivity:
    """``error``: root mean square change of predictions (generator), latents (encoder) or levels of 255 (decoder)."""

    layer: Layer
    format: str
    error: float
    flips: float | None  # share of bits; None for the decoder, which makes none


@dataclass(frozen=True)
class Tried:
    kept: int  # the number of layers left as exported, the most sensitive first
    loss: float


@dataclass(frozen=True)
class SearchResult:
    """The fewest layers to keep.

    Attributes:
        layers: the number of layers ranked.
        kept: those that stay as exported, the most sensitive first.
        loss: with these kept, of ``bits`` bits.
        tried: in the order of trying.
    """

    budget: float
    layers: int
    kept: tuple[str, ...]
    loss: float
    bits: int
    tried: tuple[Tried, ...]


def search(chosen: Chosen, found: Sequence[Sensitivity], trial: Trial, budget: float) -> dict[str, SearchResult]:
    """Find the layers to keep in each part: "generator", under teacher forcing, and "encoder", which makes bits too.

    Args:
        chosen: the formats that layers get if they are not kept.
        found: sensitivity of every layer.
        trial: generations that the budget must hold on; the encoder is given their images.
        budget: largest share of bits that may flip.
    """
    variants, searches = chosen.variants, {}

    def without(kept: frozenset[str], part: str) -> dict[str, str]:
        return {name: number for name, number in chosen.formats_of(STAGES[part]).items() if name not in kept}

    if generator := [item.layer.name for item in ranked(found, STAGES[GENERATOR])]:

        def generator_flips(kept: frozenset[str]) -> float:
            return trial.forced_flips(variants.sessions(without(kept, GENERATOR)))

        searches[GENERATOR] = fewest_kept(generator, generator_flips, budget, trial.bits)
    if encoder := [item.layer.name for item in ranked(found, STAGES[ENCODER])]:
        stage = StageTrial(variants, StageName.ENCODER, _images(trial))

        def encoder_flips(kept: frozenset[str]) -> float:
            return stage.loss(without(kept, ENCODER))[1] or 0.0

        searches[ENCODER] = fewest_kept(encoder, encoder_flips, budget, stage.reference.size)
    return searches


def fewest_kept(
    ranked: Sequence[str], loss: Callable[[frozenset[str]], float], budget: float, bits: int
) -> SearchResult:
    """Bisect over the number of ``ranked`` layers (the most sensitive first) that stay as exported.

    The loss need not fall with every layer that is kept: the result was itself measured to be within the budget. With
    all of them kept nothing is quantised, and the loss is 0.
    """
    tried: dict[int, float] = {len(ranked): 0.0}

    def holds(kept: int) -> bool:
        if kept not in tried:
            tried[kept] = loss(frozenset(ranked[:kept]))
        return tried[kept] <= budget

    low, high = (-1, 0) if holds(0) else (0, len(ranked))  # too few, enough
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    steps = tuple(Tried(kept, value) for kept, value in tried.items() if kept < len(ranked) or kept == high)
    return SearchResult(budget, len(ranked), tuple(ranked[:high]), tried[high], bits, steps)


def reasons(searches: Mapping[str, SearchResult]) -> dict[str, str]:
    """Say of each layer that a search kept why it stays as exported."""
    return {
        name: f"{place} of {result.layers} in sensitivity ({part})"
        for part, result in searches.items()
        for place, name in enumerate(result.kept, 1)
    }


def sensitivities(chosen: Chosen, trial: Trial, data: DataSet, path: Path) -> list[Sensitivity]:
    """Measure one layer after the other, in the order of the graphs.

    Args:
        chosen: the format that each layer would have.
        trial: generations that judge the layers of the generator.
        data: recorded images that judge those of decoder and encoder.
        path: file that keeps what is measured, so that a stopped run goes on from there.
    """
    variants, formats = chosen.variants, chosen.formats
    known = kept_losses(path)
    layers = [layer for layer in chosen.layers.values() if layer.name in formats]
    judges = {
        stage: StageTrial(variants, stage, data.samples(stage))
        for stage in (StageName.DECODER, StageName.ENCODER)
        if stage in variants.graphs and variants.graphs[stage].layers
    }
    found = []
    for layer in tqdm(layers, desc="one layer at a time", unit="layer", leave=False, disable=None):
        if layer.name not in known:
            alone = {layer.name: formats[layer.name]}
            if layer.stage in LOOP_STAGES:
                outcome = trial.forced(variants.sessions(alone))
                loss = outcome.error(trial.reference), outcome.flips(trial.reference) / trial.bits
            else:
                loss = judges[StageName(layer.stage)].loss(alone)
            known[layer.name] = loss
            with written_whole(path) as file:
                file.write(json.dumps(known).encode())
        error, flips = known[layer.name]
        found.append(Sensitivity(layer, formats[layer.name], error, flips))
    return found


def ranked(found: Iterable[Sensitivity], stages: Sequence[str]) -> list[Sensitivity]:
    """Those of some stages, the most sensitive first."""
    return sorted((item for item in found if item.layer.stage in stages), key=lambda item: -item.error)


class StageTrial:
    """Decoder or encoder on samples, quantised and not; ``reference`` is its output as exported, float64."""

    def __init__(self, variants: Variants, stage: str, samples: Iterable[Sample]) -> None:
        self.variants, self.stage = variants, stage
        self.samples = list(samples)
        self.output = "pixels" if stage == StageName.DECODER else _latent(variants.graphs[stage])
        self.reference = self._run({})

    def loss(self, formats: Mapping[str, str]) -> tuple[float, float | None]:
        """Root mean square change, and for the encoder the share of bits that flip."""
        got = self._run(formats)
        error = float(np.sqrt(np.mean(np.square(got - self.reference))))
        return error, None if self.stage == StageName.DECODER else float(np.mean((got > 0) != (self.reference > 0)))

    def _run(self, formats: Mapping[str, str]) -> np.ndarray:
        session = self.variants.session(self.stage, formats, [self.output])
        run = StageRun(self.variants.graphs[self.stage].spec, session)
        return np.concatenate([sample.replay(run, [self.output])[0] for sample in self.samples]).astype(np.float64)


def _latent(graph: StageGraph) -> str:
    """The tensor whose signs are the encoder's bits: what its comparison with zero reads."""
    compared = [node.input[0] for node in graph.model.graph.node if node.op_type == "Greater"]
    return compared[-1] if compared else "tokens"


def _images(trial: Trial) -> list[Sample]:
    """The images of a trial, as the encoder gets them."""
    pixels = decoded(trial.sessions, trial.reference.tokens, trial.draw, batch=1)
    return [Sample(StageName.ENCODER, i, 0, 0, {"pixels": image[None]}) for i, image in enumerate(pixels)]
