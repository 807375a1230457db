"""Step 2, choose: what every layer to be quantised gets, a format and the limit that the scale of its inputs reaches.

Limits come from what enters each layer over the recorded data set: a histogram, and for SmoothQuant the largest value
of each channel. Convolutions whose result is rounded have a limit for that too.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from bitdance_edge.calibration.activations import Activations, collect
from bitdance_edge.calibration.errors import CalibrationError
from bitdance_edge.calibration.graphs import Layer, StageGraph, layers_by_name
from bitdance_edge.calibration.quantise import Variants
from bitdance_edge.calibration.ranges import FORMATS, limit
from bitdance_edge.calibration.recipe import CalibrationRecipe
from bitdance_edge.calibration.record import DataSet
from bitdance_edge.calibration.smooth import smoothed
from bitdance_edge.runtime.bundle.stage_names import StageName


@dataclass(frozen=True)
class Chosen:
    """Scales and formats, with what they were chosen from.

    Attributes:
        variants: the stages, with limits.
        formats: layers that are quantised -> "int8", "fp8", "int4" or "nvfp4".
        left: layers of quantised stages that are not -> why.
        activations: what entered every layer.
        effects: float64 ``[steps + 1]``, see ``trials.time_effects``; None where all times count the same.
        smoothed: layers that SmoothQuant changed.
    """

    variants: Variants
    formats: Mapping[str, str]
    left: Mapping[str, str]
    activations: Mapping[str, Activations]
    effects: np.ndarray | None
    smoothed: tuple[str, ...]

    @property
    def layers(self) -> dict[str, Layer]:
        """Layers of all stages by their names."""
        return layers_by_name(self.variants.graphs)

    def formats_of(self, stages: Iterable[str]) -> dict[str, str]:
        """The quantised layers of these stages with their formats."""
        layers, wanted = self.layers, set(stages)
        return {name: number for name, number in self.formats.items() if layers[name].stage in wanted}

    def without(self, kept: Mapping[str, str]) -> "Chosen":
        """Return the same with more layers left as exported: name -> why."""
        formats = {name: number for name, number in self.formats.items() if name not in kept}
        return replace(self, formats=formats, left={**self.left, **kept})


def choose(
    graphs: Mapping[str, StageGraph],
    recipe: CalibrationRecipe,
    recorded: DataSet,
    effects: np.ndarray | None,
    threads: int | None,
) -> Chosen:
    """Choose formats and limits for every layer of the stages that the recipe quantises.

    Args:
        graphs: of these stages.
        recorded: what the limits are chosen on.
        effects: float64 ``[steps + 1]``, see ``trials.time_effects``; None where all times count the same.

    Raises:
        CalibrationError: values that are not finite, or nothing to quantise.
    """
    weights = np.ones(recorded.steps + 1) if effects is None else _time_weights(effects)
    activations = collect(graphs, recipe, recorded, weights, threads)
    done: list[str] = []
    if recipe.smooth is not None:
        seen = {name: found.channels for name, found in activations.items() if found.channels is not None}
        changed = {}
        for stage, graph in graphs.items():
            changed[stage], names = smoothed(graph, seen, recipe.smooth)
            done.extend(names)
        graphs = changed
        activations = collect(graphs, recipe, recorded, weights, threads)
    return chosen_from(graphs, recipe, activations, effects, done, threads)


def chosen_from(
    graphs: Mapping[str, StageGraph],
    recipe: CalibrationRecipe,
    activations: Mapping[str, Activations],
    effects: np.ndarray | None,
    smoothed_layers: Sequence[str],
    threads: int | None,
) -> Chosen:
    """Choose formats and limits from what entered every layer.

    Raises:
        CalibrationError: nothing is left to quantise.
    """
    formats, limits, results, left = {}, {}, {}, {}
    for name, layer in layers_by_name(graphs).items():
        histogram, precision = activations[name].histogram, recipe.precisions[layer.stage]
        number, rounds_input = layer.format_for(precision), layer.rounds_input(precision)
        if name in recipe.kept:
            left[name] = "kept by the recipe"
        elif rounds_input and histogram.largest == 0:
            left[name] = "its inputs were 0 in the whole calibration set: no scale can be chosen"
        else:
            formats[name] = number
            if rounds_input:
                limits[name] = limit(histogram, recipe.calibrator, recipe.percentile, FORMATS[number])
            if (leaving := activations[name].result).largest:
                results[name] = limit(leaving, recipe.calibrator, recipe.percentile, FORMATS[number])
    if not formats:
        raise CalibrationError(
            f"no layer of {', '.join(recipe.precisions)} is left to quantise: {len(left)} are kept by the recipe or "
            "see only zeros; shorten its 'kept', or record other images with --seed or --classes"
        )
    products = {name: seen.products for name, seen in activations.items() if seen.products is not None}
    variants = Variants(graphs, limits, products, threads, results)
    return Chosen(variants, formats, left, activations, effects, tuple(smoothed_layers))


def require_kept(recipe: CalibrationRecipe, graphs: Mapping[str, StageGraph]) -> None:
    """Raise CalibrationError where the recipe keeps layers that no stage has."""
    known = layers_by_name(graphs)
    if unknown := set(recipe.kept) - known.keys():
        raise CalibrationError(
            f"layers {', '.join(sorted(unknown))} of the recipe are not in this bundle; "
            f"layers are named like {next(iter(known), 'head:head.final_layer.linear')}"
        )


def weighs_head(recipe: CalibrationRecipe, graphs: Mapping[str, StageGraph]) -> bool:
    """Whether something is chosen by the head's activations, so that its sampling times weigh on it."""
    head = graphs.get(StageName.HEAD)
    if head is None:
        return False
    precision = recipe.precisions[head.stage]
    return recipe.feedback or any(layer.rounds_input(precision) for layer in head.layers)


def _time_weights(effects: np.ndarray) -> np.ndarray:
    """How much a sample of each time counts: squared effects, for errors add up in squares; their mean is 1."""
    return np.square(effects) / np.square(effects).mean()
