"""What every layer of the stages to be quantised gets: a format, and the limit that the scale of its inputs reaches."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto

from bitdance_edge.calibration.collect import Activations, collect
from bitdance_edge.calibration.errors import CalibrationError
from bitdance_edge.calibration.formats import FORMATS
from bitdance_edge.calibration.graphs import read_skeleton
from bitdance_edge.calibration.layers import Layer, by_name, find_layers
from bitdance_edge.calibration.ranges import limit
from bitdance_edge.calibration.recipe import Recipe
from bitdance_edge.calibration.recording import DataSet
from bitdance_edge.calibration.smooth import smoothed
from bitdance_edge.calibration.times import time_effects, weights
from bitdance_edge.calibration.trials import Trial
from bitdance_edge.calibration.variants import Variants
from bitdance_edge.runtime.bundle.manifest import Bundle


@dataclass(frozen=True)
class Chosen:
    """Scales and formats, with how they came about.

    Attributes:
        formats: layers that are quantised.
        left: layers of quantised stages that are not, and why.
        activations: of every layer, what was seen to enter it.
        effects: float64 ``[steps + 1]``, see ``times``; None where all times count the same.
        smoothed: layers that SmoothQuant changed.
    """

    variants: Variants
    formats: Mapping[str, str]
    left: Mapping[str, str]
    activations: Mapping[str, Activations]
    effects: np.ndarray | None
    smoothed: tuple[str, ...]


def choose(bundle: Bundle, recipe: Recipe, recorded: DataSet, ranking: Trial, threads: int | None) -> Chosen:
    """Formats and limits of every layer of the stages that the recipe quantises.

    Args:
        recorded: what the limits are chosen on.
        ranking: generations that tell how much each sampling time matters.

    Raises:
        CalibrationError: values that are not finite, layers of the recipe that are not there, or nothing to quantise.
    """
    skeletons = {stage: read_skeleton(bundle.verified(stage)) for stage in recipe.precisions}
    layers = {stage: find_layers(stage, skeletons[stage].graph) for stage in recipe.precisions}
    _require_layers(recipe, layers, bundle)
    rounded = any(
        layer.format_for(recipe.precisions["head"]) != "int4" for layer in layers.get("head", ())
    )  # the head's activations get scales
    effects = time_effects(ranking, recorded.steps, recorded.folder.parent) if recipe.weigh_times and rounded else None
    counted = np.ones(recorded.steps + 1) if effects is None else weights(effects)
    done: tuple[str, ...] = ()
    activations = collect(bundle, skeletons, layers, recorded, counted, threads)
    if recipe.smooth is not None:
        skeletons, done = _smoothed(bundle, skeletons, layers, activations, recipe.smooth)
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
            if number in FORMATS:
                limits[name] = limit(histogram, recipe.calibrator, recipe.percentile, FORMATS[number])
    if not formats:
        raise CalibrationError(
            f"no layer of {', '.join(recipe.precisions)} is left to quantise: {len(left)} are kept by the recipe or "
            "see only zeros; shorten its 'kept', or record other images with --seed or --classes"
        )
    return Chosen(Variants(bundle, skeletons, layers, limits, threads), formats, left, activations, effects, done)


def _require_layers(recipe: Recipe, layers: Mapping[str, list[Layer]], bundle: Bundle) -> None:
    if unknown := set(recipe.kept) - by_name(layers).keys():
        raise CalibrationError(
            f"layers {', '.join(sorted(unknown))} of the recipe are not in {bundle.folder}; "
            f"layers are named like {next(iter(by_name(layers)), 'head:head.final_layer.linear')}"
        )


def _smoothed(
    bundle: Bundle,
    skeletons: Mapping[str, ModelProto],
    layers: Mapping[str, list[Layer]],
    activations: Mapping[str, Activations],
    strength: float,
) -> tuple[dict[str, ModelProto], tuple[str, ...]]:
    """Graphs with the factors of SmoothQuant folded in, and the layers that have some."""
    changed, done = {}, []
    for stage, skeleton in skeletons.items():
        seen = {layer.name: activations[layer.name].channels for layer in layers[stage]}
        channels = {name: found for name, found in seen.items() if found is not None}
        folder = (bundle.folder / bundle.stage(stage).graph.path).parent
        changed[stage], names = smoothed(skeleton, folder, layers[stage], channels, strength)
        done.extend(names)
    return changed, tuple(done)
