"""What enters each layer over recorded launches: magnitudes, the largest of each channel, and products of inputs.

Of convolutions whose result is rounded, the magnitudes of what leaves are gathered too.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from onnx import ValueInfoProto
from tqdm import tqdm

from bitdance_edge.calibration.errors import CalibrationError
from bitdance_edge.calibration.graphs import Layer, StageGraph
from bitdance_edge.calibration.ranges import Histogram
from bitdance_edge.calibration.recipe import CalibrationRecipe
from bitdance_edge.calibration.record import SAMPLED_STAGES, DataSet, Sample
from bitdance_edge.calibration.sessions import StageRun, session_of, with_outputs
from bitdance_edge.calibration.weights import FOUR_BITS
from bitdance_edge.runtime.bundle.stage_names import StageName

FETCHED_BYTES = 1_000_000_000  # of one sample's activations held at once; where there are more, another pass is made


@dataclass
class Activations:
    """What entered one layer. ``by_step`` is the largest magnitude at each sampling step, for the head."""

    histogram: Histogram = field(default_factory=Histogram)
    channels: np.ndarray | None = None  # largest magnitudes, float32 [inputs], of matrix products
    products: np.ndarray | None = None  # sum of x x^T, float32 [inputs, inputs], where error feedback needs them
    by_step: dict[int, float] = field(default_factory=dict)
    result: Histogram = field(default_factory=Histogram)  # of what leaves, where that is rounded

    def add(self, values: np.ndarray, step: int, weight: float, wanted: "Wanted") -> bool:
        """Take in ``values``; return False, with nothing taken in, if one is not finite."""
        if not self.histogram.add(values, weight):
            return False
        self.by_step[step] = max(self.by_step.get(step, 0.0), float(np.abs(values).max(initial=0.0)))
        if wanted.channels:
            rows = values.reshape(-1, values.shape[-1]).astype(np.float32)
            largest = np.abs(rows).max(axis=0)
            self.channels = largest if self.channels is None else np.maximum(self.channels, largest)
            if wanted.products:
                products = rows.T @ (np.float32(weight) * rows)
                self.products = products if self.products is None else np.add(self.products, products, self.products)
        return True


@dataclass(frozen=True)
class Wanted:
    """What is kept of the inputs of a layer, beside their histogram."""

    channels: bool
    products: bool
    result: str | None = None  # tensor that leaves the layer, where that is rounded


def wanted_of(layer: Layer, recipe: CalibrationRecipe) -> Wanted:
    """What is kept of a layer's inputs; what enters a convolution has its channels on another axis."""
    precision = recipe.precisions[layer.stage]
    feedback = recipe.feedback and layer.format_for(precision) in FOUR_BITS and layer.name not in recipe.kept
    return Wanted(layer.operator != "Conv", feedback, layer.result if layer.rounds_result(precision) else None)


def collect(
    graphs: Mapping[str, StageGraph],
    recipe: CalibrationRecipe,
    data: DataSet,
    weights: np.ndarray,
    threads: int | None,
) -> dict[str, Activations]:
    """Run every stage over the data set and return what entered its layers, by name of the layer.

    Args:
        recipe: says what is to be known of each layer.
        weights: float64 ``[steps + 1]``, how much a sample of head or modulation counts at each sampling step.

    Raises:
        CalibrationError: a value is NaN or infinite.
    """
    seen: dict[str, Activations] = {}
    for graph in graphs.values():
        for part in _parts(graph):
            gathered = Gathered.of(part, recipe)
            _collect_part(graph, gathered, data, weights, threads)
            seen.update(gathered.by_layer)
    return seen


@dataclass(frozen=True)
class Gathered:
    """What enters some layers of a stage, gathered once for all layers that read the same tensor alike."""

    by_layer: Mapping[str, Activations]
    entering: Mapping[tuple[str, Wanted], tuple[Layer, Activations]]  # by tensor and what is kept of it

    @classmethod
    def of(cls, layers: Iterable[Layer], recipe: CalibrationRecipe) -> "Gathered":
        """Nothing yet, of these layers."""
        entering: dict[tuple[str, Wanted], tuple[Layer, Activations]] = {}
        by_layer = {}
        for layer in layers:
            key = layer.activation, wanted_of(layer, recipe)
            by_layer[layer.name] = entering.setdefault(key, (layer, Activations()))[1]
        return cls(by_layer, entering)

    @property
    def tensors(self) -> list[str]:
        entering = dict.fromkeys(tensor for tensor, _ in self.entering)
        return list(entering | dict.fromkeys(wanted.result for _, wanted in self.entering if wanted.result))

    def add(self, sample: Sample, values: Mapping[str, np.ndarray], weights: np.ndarray | None) -> None:
        """Take in what one launch gave each tensor.

        Args:
            weights: as for ``collect``; None: all times count the same, and are not told apart.

        Raises:
            CalibrationError: a value is NaN or infinite.
        """
        for (tensor, wanted), (layer, activations) in self.entering.items():
            entering = values[tensor]
            parts = [(sample.step, entering, 1.0)] if weights is None else _by_step(sample, entering, weights)
            for step, part, weight in parts:
                if not activations.add(part, step, weight, wanted):
                    raise CalibrationError(_not_finite("input", layer, sample, step))
            if wanted.result and not activations.result.add(values[wanted.result], 1.0):
                raise CalibrationError(_not_finite("result", layer, sample, 0))


def _collect_part(
    graph: StageGraph, gathered: Gathered, data: DataSet, weights: np.ndarray, threads: int | None
) -> None:
    run = StageRun(graph.spec, session_of(with_outputs(graph.model, gathered.tensors), graph.folder, threads))
    inputs = {value.name for value in graph.model.graph.input}
    fetched = [name for name in gathered.tensors if name not in inputs]
    for sample in tqdm(data.samples(graph.stage), desc=f"ranges of {graph.stage}", leave=False, disable=None):
        values = dict(zip(fetched, sample.replay(run, fetched), strict=True))
        gathered.add(sample, {**sample.inputs, **values}, weights)


def _by_step(sample: Sample, entering: np.ndarray, weights: np.ndarray) -> Iterator[tuple[int, np.ndarray, float]]:
    """Split what enters a layer by the sampling steps of a sample: step, values, how much they count."""
    if sample.stage not in SAMPLED_STAGES:
        yield 0, entering, 1.0
        return
    at_once = len(sample.inputs["time_embeddings"]) if sample.stage == StageName.MODULATION else 1
    parts = entering.reshape(at_once, -1, entering.shape[-1])
    for step, part in zip(range(sample.step, len(weights)), parts, strict=False):  # the last batch may be filled up
        yield step, part, float(weights[step])


def _not_finite(what: str, layer: Layer, sample: Sample, step: int) -> str:
    at = f"image {sample.image}, launch {sample.launch}" + (f", step {step}" if layer.stage in SAMPLED_STAGES else "")
    return (
        f"the {what} of {layer.name} is NaN or infinite at {at}: no scale fits; find where it begins with: "
        "bitdance-edge compare, or export in a wider --dtype"
    )


def _parts(graph: StageGraph) -> Iterator[list[Layer]]:
    """Yield the layers in parts whose inputs and results fit in memory at once."""
    inferred = {value.name: value for value in graph.model.graph.value_info}
    part: list[Layer] = []
    held = 0
    for layer in graph.layers:
        size = sum(_bytes(inferred.get(name), graph.prompt_tokens) for name in (layer.activation, layer.result))
        if part and held + size > FETCHED_BYTES:
            yield part
            part, held = [], 0
        part.append(layer)
        held += size
    if part:
        yield part


def _bytes(value: ValueInfoProto | None, prompt_tokens: int) -> int:
    """Bytes of a tensor of one image, in float32; a free dimension is taken to be that of a guided prompt."""
    if value is None:
        return 0
    elements = 4
    for dim in value.type.tensor_type.shape.dim:
        elements *= dim.dim_value or {"B": 1, "R": 2}.get(dim.dim_param, 2 * prompt_tokens)
    return elements
