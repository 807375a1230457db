"""From a bundle to a calibrated one: record, choose, search, write, measure, report."""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

from bitdance_edge.calibration.choose import Chosen, choose, require_kept, weighs_head
from bitdance_edge.calibration.findings import Findings
from bitdance_edge.calibration.graphs import StageGraph
from bitdance_edge.calibration.judge import Judge, JudgeOptions, judge_both
from bitdance_edge.calibration.measure import measure
from bitdance_edge.calibration.recipe import CalibrationRecipe, Part
from bitdance_edge.calibration.record import DataSet, record
from bitdance_edge.calibration.report import write_report
from bitdance_edge.calibration.search import SearchResult, Sensitivity, reasons, search, sensitivities
from bitdance_edge.calibration.sessions import BundleSessions
from bitdance_edge.calibration.trials import Trial, time_effects
from bitdance_edge.calibration.write import FOLDER, replacing, require_place, write_bundle, write_errors
from bitdance_edge.runtime.bundle.manifest import RECORDINGS, Bundle


@dataclass(frozen=True, kw_only=True)
class CalibrateOptions:
    """What a calibration costs and where it goes; only ``recipe`` changes the scales.

    Attributes:
        held_out: images for the errors of stages, and as many that rank layers and times.
        search_images, test_images: images that the budget must hold on, and that the report is measured on.
        sensitivity: rank all layers also where there is no budget to search for.
        judged_images: images for the judge, where there is one.
        data: folder of recordings and generated images; None: in the bundle.
        threads: of each graph; None: one a physical core.
    """

    recipe: CalibrationRecipe
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
        StorageError: ``folder`` or the recordings cannot be written.
        BundleError, BackendError, RequestError: the bundle cannot be run here with these settings.
    """
    recipe, draw, threads = options.recipe, options.recipe.draw, options.threads
    recipe.require_stages(bundle)
    require_place(folder, bundle, force=options.force)
    judge = None if options.judge is None else Judge(options.judge, draw.image_size(bundle.model).pixels, threads)
    graphs = {stage: StageGraph.read(bundle, stage) for stage in recipe.precisions}
    require_kept(recipe, graphs)

    data, sessions = options.data or bundle.folder / RECORDINGS, BundleSessions(bundle, threads)
    recorded = record(sessions, draw, data)
    held_out = record(sessions, draw.held_out(options.held_out, Part.STAGES), data)
    ranking = Trial(sessions, draw.held_out(options.held_out, Part.RANKING))
    weighed = recipe.weigh_times and weighs_head(recipe, graphs)
    effects = time_effects(ranking, recorded.steps, data) if weighed else None
    chosen = choose(graphs, recipe, recorded, effects, threads)
    found, searches = _search(chosen, ranking, held_out, options, data)
    chosen = chosen.without(reasons(searches))
    recipe = replace(recipe, kept=tuple(dict.fromkeys((*recipe.kept, *reasons(searches)))))
    with replacing(folder, force=options.force) as staged:
        written = write_bundle(bundle, staged, recipe, chosen)
        calibrated = BundleSessions(written, threads)
        trial = Trial(sessions, draw.held_out(options.test_images, Part.TEST))
        losses, pixels = measure(sessions, calibrated, chosen, held_out, trial)
        write_errors(written, losses.stages)
        judged = draw.held_out(options.judged_images, Part.JUDGE)
        findings = Findings(
            name=written.name,
            source=bundle.name,
            source_sha256=bundle.digest,
            recipe=recipe,
            chosen=chosen,
            sensitivities=found,
            searches=searches,
            held_out=options.held_out,
            losses=losses,
            judged=None if judge is None else judge_both(judge, sessions, calibrated, judged, data),
        )
        write_report(findings, pixels, staged / FOLDER)
    return findings


def _search(
    chosen: Chosen, ranking: Trial, held_out: DataSet, options: CalibrateOptions, data: Path
) -> tuple[list[Sensitivity], dict[str, SearchResult]]:
    """Rank the layers and search for those to keep, each where it is asked for."""
    sessions, recipe = ranking.sessions, options.recipe
    if not options.sensitivity and recipe.max_bit_flips is None:
        return [], {}
    # Named by all that the sensitivities depend on, so that those of a stopped run are found again.
    choices = replace(recipe, kept=(), max_bit_flips=None).to_json()
    key = hashlib.sha256(f"{sessions.bundle.digest} {options.held_out} {choices}".encode()).hexdigest()[:12]
    found = sensitivities(chosen, ranking, held_out, data / f"sensitivity-{key}.json")
    if recipe.max_bit_flips is None:
        return found, {}
    trial = Trial(sessions, recipe.draw.held_out(options.search_images, Part.SEARCH))
    return found, search(chosen, found, trial, recipe.max_bit_flips)
