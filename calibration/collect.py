"""What enters every layer over a data set: a histogram, the largest value of each channel and of each sampling time."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from onnx import ModelProto, ValueInfoProto
from tqdm import tqdm

from bitdance_edge.calibration.errors import CalibrationError
from bitdance_edge.calibration.layers import Layer
from bitdance_edge.calibration.ranges import Histogram
from bitdance_edge.calibration.recording import SAMPLED_STAGES, DataSet, Sample
from bitdance_edge.calibration.sessions import session_of, with_outputs
from bitdance_edge.calibration.stage_run import StageRun
from bitdance_edge.runtime.bundle.manifest import Bundle

FETCHED_BYTES = 1_000_000_000  # of one sample's activations held at once; what is more takes another pass


@dataclass
class Activations:
    """What was seen of one layer's input. ``by_step`` is the largest magnitude at each sampling step, for the head."""

    histogram: Histogram = field(default_factory=Histogram)
    channels: np.ndarray | None = None  # float32 [inputs], of matrix products
    by_step: dict[int, float] = field(default_factory=dict)

    def add(self, values: np.ndarray, step: int, weight: float, per_channel: bool) -> bool:
        if not self.histogram.add(values, weight):
            return False
        self.by_step[step] = max(self.by_step.get(step, 0.0), float(np.abs(values).max(initial=0.0)))
        if per_channel:
            largest = np.abs(values.reshape(-1, values.shape[-1])).max(axis=0).astype(np.float32)
            self.channels = largest if self.channels is None else np.maximum(self.channels, largest)
        return True


def collect(
    bundle: Bundle,
    skeletons: Mapping[str, ModelProto],
    layers: Mapping[str, list[Layer]],
    data: DataSet,
    weights: np.ndarray,
    threads: int | None,
) -> dict[str, Activations]:
    """Run every stage over the data set; what was seen, by name of the layer.

    Args:
        skeletons: stage -> graph, with its weights left in the bundle or not.
        layers: stage -> those to look at.
        weights: float64 ``[steps + 1]``, how much a sample of head or modulation counts at each sampling step.

    Raises:
        CalibrationError: a value is NaN or infinite.
    """
    seen: dict[str, Activations] = {}
    for stage, wanted in layers.items():
        if not wanted:
            continue
        folder = (bundle.folder / bundle.stage(stage).graph.path).parent
        for part in _parts(skeletons[stage], wanted, bundle):
            seen.update(_collect_part(bundle, skeletons[stage], folder, part, data, weights, threads))
    return seen


def _collect_part(
    bundle: Bundle,
    skeleton: ModelProto,
    folder: Path,
    layers: list[Layer],
    data: DataSet,
    weights: np.ndarray,
    threads: int | None,
) -> dict[str, Activations]:
    stage = layers[0].stage
    tensors = list(dict.fromkeys(layer.activation for layer in layers))
    run = StageRun(bundle, stage, session_of(with_outputs(skeleton, tensors), folder, threads))
    inputs = {value.name for value in skeleton.graph.input}
    fetched = [name for name in tensors if name not in inputs]
    seen = {layer.name: Activations() for layer in layers}
    for sample in tqdm(data.samples(stage), desc=f"ranges of {stage}", unit="launch", leave=False, disable=None):
        values = dict(zip(fetched, run(sample, fetched), strict=True))
        for layer in layers:
            entering = values[layer.activation] if layer.activation in values else sample.inputs[layer.activation]
            for step, part, weight in _by_step(sample, entering, weights):
                if not seen[layer.name].add(part, step, weight, layer.operator != "Conv"):
                    raise CalibrationError(_not_finite(layer, sample, step))
    return seen


def _by_step(sample: Sample, entering: np.ndarray, weights: np.ndarray) -> Iterator[tuple[int, np.ndarray, float]]:
    """What enters a layer at each sampling step of a sample, and how much it counts."""
    if sample.stage not in SAMPLED_STAGES:
        yield 0, entering, 1.0
        return
    at_once = len(sample.inputs["time_embeddings"]) if sample.stage == "modulation" else 1
    parts = entering.reshape(at_once, -1, entering.shape[-1])
    for step, part in zip(range(sample.step, len(weights)), parts, strict=False):  # the last batch may be filled up
        yield step, part, float(weights[step])


def _not_finite(layer: Layer, sample: Sample, step: int) -> str:
    at = f"image {sample.image}, launch {sample.launch}" + (f", step {step}" if layer.stage in SAMPLED_STAGES else "")
    return (
        f"what enters {layer.name} is NaN or infinite at {at}: no scale fits; find where it begins with: "
        "bitdance-edge compare, or export in a wider --dtype"
    )


def _parts(skeleton: ModelProto, layers: list[Layer], bundle: Bundle) -> Iterator[list[Layer]]:
    """The layers in parts whose inputs fit in memory together."""
    inferred = {value.name: value for value in skeleton.graph.value_info}
    part: list[Layer] = []
    held = 0
    for layer in layers:
        size = _bytes(inferred.get(layer.activation), bundle)
        if part and held + size > FETCHED_BYTES:
            yield part
            part, held = [], 0
        part.append(layer)
        held += size
    yield part


def _bytes(value: ValueInfoProto | None, bundle: Bundle) -> int:
    """Of a tensor of one image; a dimension that changes is taken to be a guided prompt's."""
    if value is None:
        return 0
    elements = 4
    for dim in value.type.tensor_type.shape.dim:
        elements *= dim.dim_value or {"B": 1, "R": 2}.get(dim.dim_param, 2 * bundle.model.prompt_tokens)
    return elements
