"""The budget of bit flips: which layers stay as exported so that it holds on images that were not recorded."""

from collections.abc import Mapping, Sequence

from bitdance_edge.calibration.choice import Chosen
from bitdance_edge.calibration.layers import by_name
from bitdance_edge.calibration.measure import decoded
from bitdance_edge.calibration.recording import Sample
from bitdance_edge.calibration.search import SearchResult, fewest_kept
from bitdance_edge.calibration.sensitivity import ImageStage, Sensitivity, ranked
from bitdance_edge.calibration.trials import Trial
from bitdance_edge.runtime.bundle.stage_names import LOOP_STAGES
from bitdance_edge.runtime.pipeline import Pipeline

ENCODER = ("encoder",)


def search_budget(chosen: Chosen, found: Sequence[Sensitivity], trial: Trial, budget: float) -> dict[str, SearchResult]:
    """Layers to keep: of the "generator", under teacher forcing, and of the "encoder", which makes bits too.

    Args:
        found: sensitivity of every layer.
        trial: generations that hold the budget; the encoder is given their images.
        budget: largest share of bits that may turn.
    """
    searches = {}
    if generator := [item.layer.name for item in ranked(found, LOOP_STAGES)]:

        def forced_flips(kept: frozenset[str]) -> float:
            sessions = chosen.variants.sessions(_without(kept, LOOP_STAGES, chosen))
            return trial.forced(sessions).flips(trial.reference) / trial.bits

        searches["generator"] = fewest_kept(generator, forced_flips, budget, trial.bits)
    if encoder := [item.layer.name for item in ranked(found, ENCODER)]:
        images = _images(trial)
        stage = ImageStage(chosen.variants, "encoder", images)

        def encoder_flips(kept: frozenset[str]) -> float:
            return stage.loss(_without(kept, ENCODER, chosen))[1] or 0.0

        searches["encoder"] = fewest_kept(encoder, encoder_flips, budget, stage.reference.size)
    return searches


def reasons(searches: Mapping[str, SearchResult]) -> dict[str, str]:
    """Why each layer that a search kept stays as exported."""
    return {
        name: f"{place} of {search.layers} in sensitivity ({part})"
        for part, search in searches.items()
        for place, name in enumerate(search.kept, 1)
    }


def _without(kept: frozenset[str], stages: Sequence[str], chosen: Chosen) -> dict[str, str]:
    """Formats of the layers of some stages, but for those that are kept."""
    layers = by_name(chosen.variants.layers)
    return {
        name: number for name, number in chosen.formats.items() if layers[name].stage in stages and name not in kept
    }


def _images(trial: Trial) -> list[Sample]:
    """The images of a trial, as the encoder gets them."""
    with Pipeline.open(trial.bundle.folder, device="cpu", threads=trial.threads, max_batch=1) as pipeline:
        pixels = decoded(pipeline, trial.reference.tokens, trial.draw, batch=1)
    return [Sample("encoder", i, 0, 0, {"pixels": image[None]}) for i, image in enumerate(pixels)]
