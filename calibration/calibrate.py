"""From a bundle to a calibrated one: record, choose scales, search, write, measure, report."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bitdance_edge.calibration.budget import reasons, search_budget
from bitdance_edge.calibration.choice import choose
from bitdance_edge.calibration.errors import CalibrationError
from bitdance_edge.calibration.findings import Findings
from bitdance_edge.calibration.generated import generated
from bitdance_edge.calibration.judge import Judge, JudgeOptions
from bitdance_edge.calibration.layers import by_name
from bitdance_edge.calibration.measure import bit_and_image_loss, stage_losses
from bitdance_edge.calibration.recipe import Recipe
from bitdance_edge.calibration.recording import record
from bitdance_edge.calibration.report import write_report
from bitdance_edge.calibration.search import SearchResult
from bitdance_edge.calibration.sensitivity import Sensitivity, sensitivities
from bitdance_edge.calibration.trials import Trial
from bitdance_edge.calibration.variants import Variants
from bitdance_edge.calibration.written import with_losses, write_bundle
from bitdance_edge.runtime.bundle.files import put_in_place, staged_folder
from bitdance_edge.runtime.bundle.manifest import RECORDINGS, Bundle
from bitdance_edge.runtime.bundle.stage_names import LOOP_STAGES

# Parts of the held-out images (see ``Draw.held_out``); no two of them have an image in common.
STAGE_PART, RANKING_PART, SEARCH_PART, TEST_PART, JUDGE_PART = range(5)


@dataclass(frozen=True, kw_only=True)
class CalibrateOptions:
    """What a calibration costs and where it goes; none of it changes the scales.

    Attributes:
        held_out: images for the errors of stages, and those that rank layers and times.
        search_images, test_images: that hold the budget, and that the report is measured on.
        sensitivity: rank all layers also where there is no budget to search for.
        judged_images: images for the judge, where there is one.
        data: folder of recordings and generated images (None: ``calibration/`` in the bundle).
    """

    recipe: Recipe
    held_out: int = 8
    search_images: int = 32
    test_images: int = 64
    sensitivity: bool = True
    judge: JudgeOptions | None = None
    judged_images: int = 0
    data: Path | None = None
    threads: int | None = None
    force: bool = False


def calibrate(bundle: Bundle, folder: Path, options: CalibrateOptions) -> Findings:
    """Write a calibrated copy of ``bundle`` with its report; the bundle itself only gains recordings.

    Raises:
        CalibrationError: nothing to calibrate, no images, values that are not finite, or ``folder`` exists.
        BundleError, BackendError, RequestError: the bundle cannot be run here with these settings.
    """
    recipe = options.recipe
    recipe.require_stages(bundle)
    if folder.exists() and not (options.force and (folder / "bundle.json").is_file()):
        raise CalibrationError(f"{folder} exists; write to another folder, or replace a bundle with --force")
    place = options.data or bundle.folder / RECORDINGS
    judge = None
    if options.judge is not None:
        size = recipe.draw.image_size(bundle)
        judge = Judge(options.judge, size.height, size.width, options.threads)
    recorded = record(bundle, recipe.draw, place, options.threads)
    held_out = record(bundle, recipe.draw.held_out(options.held_out, STAGE_PART), place, options.threads)
    ranking = Trial(bundle, recipe.draw.held_out(options.held_out, RANKING_PART), options.threads)
    chosen = choose(bundle, recipe, recorded, ranking, options.threads)
    found: list[Sensitivity] = []
    if options.sensitivity or recipe.max_bit_flips is not None:
        found = sensitivities(chosen.variants, chosen.formats, ranking, held_out, _ranking_file(bundle, options, place))
    searches: dict[str, SearchResult] = {}
    if recipe.max_bit_flips is not None:
        trial = Trial(bundle, recipe.draw.held_out(options.search_images, SEARCH_PART), options.threads)
        searches = search_budget(chosen, found, trial, recipe.max_bit_flips)
    kept = tuple(dict.fromkeys((*recipe.kept, *(name for search in searches.values() for name in search.kept))))
    formats = {name: number for name, number in chosen.formats.items() if name not in kept}
    try:
        with staged_folder(folder) as staged:
            written = write_bundle(bundle, staged, replace(recipe, kept=kept), chosen, formats)
            losses = stage_losses(bundle, written, held_out, options.threads)
            written = with_losses(written, losses)
            trial = Trial(bundle, recipe.draw.held_out(options.test_images, TEST_PART), options.threads)
            bits, images, pixels = bit_and_image_loss(bundle, written, trial, options.threads)
            findings = Findings(
                bundle=bundle,
                calibrated=written,
                recipe=replace(recipe, kept=kept),
                layers=by_name(chosen.variants.layers),
                formats=formats,
                left={**chosen.left, **reasons(searches)},
                held_out=options.held_out,
                stage_losses=losses,
                stage_bits=_stage_bits(chosen.variants, formats, trial),
                bits=bits,
                images=images,
                sensitivities=found,
                searches=searches,
                activations=chosen.activations,
                effects=chosen.effects,
                smoothed=chosen.smoothed,
                judged=_judged(judge, bundle, written, options, place) if judge else None,
            )
            write_report(findings, pixels, staged / "calibration")
            put_in_place(staged, folder)
    except OSError as error:
        raise CalibrationError(
            f"cannot write {folder}: {error.strerror or error}; free some space or choose another folder"
        ) from error
    return replace(findings, calibrated=replace(written, folder=folder))


def _ranking_file(bundle: Bundle, options: CalibrateOptions, place: Path) -> Path:
    """Where the sensitivities are kept while they are measured: named by all that they depend on."""
    choices = replace(options.recipe, kept=(), max_bit_flips=None).to_json()
    key = hashlib.sha256(f"{bundle.digest} {options.held_out} {choices}".encode()).hexdigest()[:12]
    return place / f"sensitivity-{key}.json"


def _judged(judge: Judge, bundle: Bundle, calibrated: Bundle, options: CalibrateOptions, place: Path) -> dict[str, Any]:
    """Class agreement and Fréchet distance of both bundles' images, with the same classes and noise."""
    draw = options.recipe.draw.held_out(options.judged_images, JUDGE_PART)
    floor, real = judge.floor(draw.images)
    scores: dict[str, Any] = {"images": draw.images, "seed": draw.seed, "floor": floor, "floor_images": real}
    scores["references"] = len(judge.reference)
    for name, made in (("reference", bundle), ("calibrated", calibrated)):
        scores[name] = judge.scores(*generated(made, draw, place, options.threads))
    return scores


def _stage_bits(variants: Variants, formats: Mapping[str, str], trial: Trial) -> dict[str, float]:
    """Bits that turn under teacher forcing where a single stage is quantised."""
    layers = by_name(variants.layers)
    shares = {}
    for stage in LOOP_STAGES:
        alone = {name: number for name, number in formats.items() if layers[name].stage == stage}
        if alone:
            shares[stage] = trial.forced(variants.sessions(alone)).flips(trial.reference) / trial.bits
    return shares
