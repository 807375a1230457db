"""From a bundle to a calibrated one: record, choose scales, search, write, measure, report."""

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto

from bitdance_edge.calibration.collect import Activations, collect
from bitdance_edge.calibration.errors import CalibrationError
from bitdance_edge.calibration.findings import Findings
from bitdance_edge.calibration.formats import FORMATS
from bitdance_edge.calibration.generated import generated
from bitdance_edge.calibration.graphs import read_skeleton, write_graph
from bitdance_edge.calibration.judge import Judge, JudgeOptions
from bitdance_edge.calibration.layers import Layer, by_name, find_layers
from bitdance_edge.calibration.measure import StageLoss, bit_and_image_loss, stage_losses
from bitdance_edge.calibration.ranges import limit
from bitdance_edge.calibration.recipe import Recipe
from bitdance_edge.calibration.recording import DataSet, record
from bitdance_edge.calibration.report import write_report
from bitdance_edge.calibration.search import SearchResult, fewest_kept
from bitdance_edge.calibration.sensitivity import ImageStage, Sensitivity, ranked, sensitivities
from bitdance_edge.calibration.smooth import smoothed
from bitdance_edge.calibration.times import time_effects, weights
from bitdance_edge.calibration.trials import Trial
from bitdance_edge.calibration.variants import Variants
from bitdance_edge.runtime.bundle import RECORDINGS, Bundle, StageSpec, file_spec
from bitdance_edge.runtime.files import folder_aside, put_in_place
from bitdance_edge.runtime.loop import LOOP_STAGES

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


@dataclass(frozen=True)
class Chosen:
    """Scales and formats, with how they came about."""

    variants: Variants
    formats: Mapping[str, str]  # layers that are quantised
    left: Mapping[str, str]  # layers of quantised stages that are not, and why
    activations: Mapping[str, Activations]
    effects: np.ndarray | None
    smoothed: tuple[str, ...]


def calibrate(bundle: Bundle, folder: Path, options: CalibrateOptions) -> Findings:
    """Write a calibrated copy of ``bundle`` with its report; the bundle itself only gains recordings.

    Raises:
        CalibrationError: nothing to calibrate, no images, values that are not finite, or ``folder`` exists.
        BundleError, BackendError, RequestError: the bundle cannot be run here with these settings.
    """
    recipe = options.recipe
    recipe.require_stages(bundle)
    if bundle.profile == "cpu24":
        raise CalibrationError(
            f"{bundle.folder} is of profile cpu24, whose products are convolutions, and no CPU runs those in lower "
            "precision: calibrate a bundle that was exported with --profile kv24"
        )
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
    chosen = choose(bundle, options, recorded, ranking)
    found: list[Sensitivity] = []
    if options.sensitivity or recipe.max_bit_flips is not None:
        found = sensitivities(chosen.variants, chosen.formats, ranking, held_out, _ranking_file(bundle, options, place))
    searches = _search(bundle, options, chosen, found, held_out)
    kept = tuple(dict.fromkeys((*recipe.kept, *(name for search in searches.values() for name in search.kept))))
    formats = {name: number for name, number in chosen.formats.items() if name not in kept}
    try:
        with folder_aside(folder) as aside:
            written = _write(bundle, aside, options, replace(recipe, kept=kept), chosen, formats)
            losses = stage_losses(bundle, written, held_out, options.threads)
            written = _with_losses(written, losses)
            trial = Trial(bundle, recipe.draw.held_out(options.test_images, TEST_PART), options.threads)
            bits, images, pixels = bit_and_image_loss(bundle, written, trial, options.threads)
            findings = Findings(
                bundle=bundle,
                calibrated=written,
                recipe=replace(recipe, kept=kept),
                layers=by_name(chosen.variants.layers),
                formats=formats,
                left={**chosen.left, **_reasons(searches)},
                stage_losses=losses,
                stage_bits=_stage_bits(chosen.variants, formats, ranking),
                bits=bits,
                images=images,
                sensitivities=found,
                searches=searches,
                activations=chosen.activations,
                effects=chosen.effects,
                smoothed=chosen.smoothed,
                judged=_judged(judge, bundle, written, options, place) if judge else None,
            )
            write_report(findings, pixels, aside / "calibration")
            put_in_place(aside, folder)
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


def choose(bundle: Bundle, options: CalibrateOptions, recorded: DataSet, ranking: Trial) -> Chosen:
    """Formats and limits of every layer of the stages that the recipe quantises."""
    recipe, threads = options.recipe, options.threads
    skeletons = {stage: read_skeleton(bundle.verified(stage)) for stage in recipe.precisions}
    layers = {stage: find_layers(stage, skeletons[stage].graph) for stage in recipe.precisions}
    if unknown := set(recipe.kept) - by_name(layers).keys():
        raise CalibrationError(
            f"layers {', '.join(sorted(unknown))} of the recipe are not in {bundle.folder}; "
            f"layers are named like {next(iter(by_name(layers)), 'head:head.final_layer.linear')}"
        )
    rounded = any(
        layer.format_for(recipe.precisions["head"]) != "int4" for layer in layers.get("head", ())
    )  # the head's activations get scales
    effects = time_effects(ranking, recorded.steps, recorded.folder.parent) if recipe.weigh_times and rounded else None
    counted = np.ones(recorded.steps + 1) if effects is None else weights(effects)
    done: tuple[str, ...] = ()
    activations = collect(bundle, skeletons, layers, recorded, counted, threads)
    if recipe.smooth is not None:
        skeletons, done = _smooth(bundle, skeletons, layers, activations, recipe.smooth)
        layers = {stage: find_layers(stage, skeletons[stage].graph) for stage in layers}
        activations = collect(bundle, skeletons, layers, recorded, counted, threads)
    formats, limits, left = {}, {}, {}
    for name, layer in by_name(layers).items():
        histogram = activations[name].histogram
        number = layer.format_for(recipe.precisions[layer.stage])
        if name in recipe.kept:
            left[name] = "kept by the recipe"
        elif number in FORMATS and histogram.largest == 0:
            left[name] = "all that enters it was 0 in the whole calibration set: no scale can be chosen"
        else:
            formats[name] = number
        limits[name] = {
            kind: limit(histogram, recipe.calibrator, recipe.percentile, FORMATS[kind])
            for kind in FORMATS
            if kind == number
        }
    if not formats:
        raise CalibrationError(f"no layer of {', '.join(recipe.precisions)} can be quantised: see which are kept")
    variants = Variants(bundle, skeletons, layers, limits, threads)
    return Chosen(variants, formats, left, activations, effects, done)


def _smooth(
    bundle: Bundle,
    skeletons: Mapping[str, ModelProto],
    layers: Mapping[str, list[Layer]],
    activations: Mapping[str, Activations],
    strength: float,
) -> tuple[dict[str, ModelProto], tuple[str, ...]]:
    changed, done = {}, []
    for stage, skeleton in skeletons.items():
        seen = {layer.name: activations[layer.name].channels for layer in layers[stage]}
        channels = {name: found for name, found in seen.items() if found is not None}
        folder = (bundle.folder / bundle.stage(stage).graph.path).parent
        changed[stage], names = smoothed(skeleton, folder, layers[stage], channels, strength)
        done.extend(names)
    return changed, tuple(done)


def _search(
    bundle: Bundle, options: CalibrateOptions, chosen: Chosen, found: list[Sensitivity], held_out: DataSet
) -> dict[str, SearchResult]:
    """Layers to keep so that the budget holds: of the generator, and of the encoder, which makes bits too."""
    budget = options.recipe.max_bit_flips
    if budget is None:
        return {}
    formats, searches = chosen.formats, {}

    def without(kept: frozenset[str], stages: tuple[str, ...]) -> dict[str, str]:
        layers = by_name(chosen.variants.layers)
        return {name: number for name, number in formats.items() if layers[name].stage in stages and name not in kept}

    if generator := [item.layer.name for item in ranked(found, LOOP_STAGES)]:
        trial = Trial(bundle, options.recipe.draw.held_out(options.search_images, SEARCH_PART), options.threads)

        def forced_flips(kept: frozenset[str]) -> float:
            return (
                trial.forced(chosen.variants.sessions(without(kept, LOOP_STAGES))).flips(trial.reference) / trial.bits
            )

        searches["generator"] = fewest_kept(generator, forced_flips, budget)
    if encoder := [item.layer.name for item in ranked(found, ("encoder",))]:
        stage = ImageStage(chosen.variants, "encoder", held_out)
        searches["encoder"] = fewest_kept(
            encoder, lambda kept: stage.loss(without(kept, ("encoder",)))[1] or 0.0, budget
        )
    return searches


def _reasons(searches: Mapping[str, SearchResult]) -> dict[str, str]:
    return {
        name: f"number {place} of the {part}'s most sensitive; with fewer kept {100 * search.budget:g} % did not hold"
        for part, search in searches.items()
        for place, name in enumerate(search.kept, 1)
    }


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


def _write(
    bundle: Bundle,
    folder: Path,
    options: CalibrateOptions,
    recipe: Recipe,
    chosen: Chosen,
    formats: Mapping[str, str],
) -> Bundle:
    """The calibrated bundle, its recipe and its scales; every stage gets a file of weights of its own."""
    stages: dict[str, StageSpec] = {}
    for name, stage in bundle.stages.items():
        source = bundle.verified(name)
        changed = any(layer.name in formats for layer in chosen.variants.layers.get(name, ()))
        precision = recipe.precisions[name] if changed else stage.precision
        path = folder / "onnx" / precision / f"{name}.onnx"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_graph(chosen.variants.graph(name, formats) if changed else read_skeleton(source), source.parent, path)
        weights_file = path.with_name(f"{path.name}.data")
        held = (file_spec(folder, weights_file),) if weights_file.exists() else ()
        stages[name] = replace(
            stage,
            graph=file_spec(folder, path),
            weights=held,
            weight_bytes=sum(file.bytes for file in held),
            precision=precision,
        )
    if bundle.text is not None:
        shutil.copyfile(bundle.verified_file(bundle.text.tokenizer), folder / bundle.text.tokenizer.path)
    if bundle.fast_preview is not None:
        shutil.copyfile(bundle.verified_file(bundle.fast_preview), folder / bundle.fast_preview.path)
    place = folder / "calibration"
    place.mkdir(exist_ok=True)
    (place / "recipe.json").write_text(recipe.to_json())
    (place / "scales.json").write_text(json.dumps(scales(chosen, formats), indent=1) + "\n")
    written = replace(
        bundle,
        folder=folder,
        name=f"{bundle.name}-{recipe.name}",
        stages=stages,
        links={},
        provenance={
            **bundle.provenance,
            "calibrated_from": bundle.digest,
            "calibrated_with": {package: version(package) for package in ("bitdance-edge", "onnx", "onnxruntime")},
        },
    )
    written.write()
    return Bundle.open(folder)


def scales(chosen: Chosen, formats: Mapping[str, str]) -> dict[str, dict[str, object]]:
    """Of every quantised layer its format and, where activations are rounded, the limit that their scale reaches."""
    return {
        name: {"format": number, **({"limit": chosen.variants.limits[name][number]} if number in FORMATS else {})}
        for name, number in formats.items()
    }


def _with_losses(written: Bundle, losses: Mapping[str, StageLoss]) -> Bundle:
    """The error of calibrated stages, against the same stage as exported, into the manifest."""
    stages = {
        name: replace(stage, max_error=losses[name].largest, tolerance=2 * losses[name].largest)
        if name in losses
        else stage
        for name, stage in written.stages.items()
    }
    replace(written, stages=stages).write()
    return Bundle.open(written.folder)
