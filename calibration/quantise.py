"""Q/DQ graphs: a layer's weights become codes, scales and DequantizeLinear, and its input is rounded before it.

The result of an INT8 convolution is rounded behind it: ONNX Runtime and TensorRT then compute it in INT8 (QLinearConv).

The operators are standard ONNX (https://onnx.ai/onnx/operators/onnx__DequantizeLinear.html): an 8-bit weight has a
scale for each output, a 4-bit one for each group of inputs. An NVFP4 weight has two DequantizeLinear, of which the
first gives the second its scales. All other nodes that read a layer's input read it unchanged.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from bitdance_edge.calibration.emulate import on_this_cpu
from bitdance_edge.calibration.errors import CalibrationError
from bitdance_edge.calibration.gptq import encode_with_feedback
from bitdance_edge.calibration.graphs import Layer, StageGraph, layers_by_name, weight_matrix
from bitdance_edge.calibration.ranges import FORMATS
from bitdance_edge.calibration.sessions import session_of, with_outputs
from bitdance_edge.calibration.stored_weights import parts
from bitdance_edge.calibration.weights import CODES, FOUR_BITS, Encoded, encode, group_of, scale_type
from bitdance_edge.runtime.bundle.dtypes import ONNX_NUMBERS, tensor_bytes

# The first opset whose DequantizeLinear takes the format.
FIRST_OPSET = {"int8": 13, "fp8": 19, "int4": 21, "nvfp4": 23}
NO_LIMITS: Mapping[str, float] = MappingProxyType({})


@dataclass(frozen=True)
class Variants:
    """The stages to be quantised, with the limits of their scales; any choice of formats makes a variant.

    A variant is asked for by ``formats``: name of a layer -> "int8", "fp8", "int4" or "nvfp4"; others stay as exported.

    Attributes:
        graphs: by stage.
        limits: name of a layer -> largest activation that its scale reaches, of those whose activations have one.
        products: name of a layer -> products of its inputs, float32 ``[inputs, inputs]``, of those whose weights are
            rounded with error feedback.
        threads: of each session; None: one a physical core.
        results: name of a layer -> largest result that its scale reaches, of those whose results are rounded.
    """

    graphs: Mapping[str, StageGraph]
    limits: Mapping[str, float]
    products: Mapping[str, np.ndarray]
    threads: int | None
    results: Mapping[str, float] = field(default_factory=dict)
    _encoded: dict[tuple[str, str], Encoded] = field(default_factory=dict, compare=False)

    def encoded(self, layer: Layer, precision: str) -> Encoded:
        """The weight of a layer in a format, rounded the first time that it is asked for."""
        key = layer.name, precision
        if key not in self._encoded:
            self._encoded[key] = encoded_weight(self.graphs[layer.stage], layer, precision, self.products, self.threads)
        return self._encoded[key]

    def quantised(self, stage: str, formats: Mapping[str, str]) -> "QuantisedGraph":
        """One stage of a variant, with its tensors promised."""
        return quantised_graph(self.graphs[stage], formats, self.limits, self.results)

    def graph(self, stage: str, formats: Mapping[str, str]) -> ModelProto:
        """One stage of a variant, with the weights of its quantised layers in it; the others stay in their files."""
        made = self.quantised(stage, formats)
        for tensor in made.model.graph.initializer:
            if tensor.name in made.promised:
                tensor.raw_data = made.promised[tensor.name].content(self)
        return made.model

    def session(self, stage: str, formats: Mapping[str, str], outputs: Sequence[str] = ()) -> Any:
        """The session of one stage of a variant, which outputs these inner tensors too."""
        folder, model = self.graphs[stage].folder, self.graph(stage, formats)
        model = on_this_cpu(with_outputs(model, outputs) if outputs else model, folder)
        return session_of(model, folder, self.threads)

    def sessions(self, formats: Mapping[str, str]) -> dict[str, Any]:
        """Sessions of the stages in which a variant differs from the bundle."""
        changed = {layer.stage for name, layer in layers_by_name(self.graphs).items() if name in formats}
        return {stage: self.session(stage, formats) for stage in self.graphs if stage in changed}


def encoded_weight(
    graph: StageGraph, layer: Layer, precision: str, products: Mapping[str, np.ndarray], threads: int | None
) -> Encoded:
    """Round the weight of a layer, with error feedback where the products of its inputs are known.

    Raises:
        CalibrationError: a value is not finite.
    """
    weight, number = weight_matrix(graph, layer)
    stored = scale_type(number)
    try:
        if layer.name in products and precision in FOUR_BITS:
            return encode_with_feedback(weight, products[layer.name], precision, stored)
        return encode(weight, precision, stored, threads)
    except CalibrationError as error:
        raise CalibrationError(f"{layer.name}: {error}") from None


@dataclass(frozen=True)
class Promised:
    """A tensor of a quantised graph whose values are made from a layer's weight when they are wanted."""

    layer: Layer
    precision: str
    part: int  # of ``weights.parts``

    def content(self, weights: Any) -> bytes:
        """Its bytes; ``weights`` gives a layer's ``encoded`` weight."""
        return self.bytes_of(weights.encoded(self.layer, self.precision))

    def bytes_of(self, encoded: Encoded) -> bytes:
        """Its bytes of the encoded weight."""
        layer = self.layer
        return parts(self.precision, layer.shape, layer.outputs_axis, layer.element_type)[self.part].content(encoded)


@dataclass(frozen=True)
class QuantisedGraph:
    """A graph with codes and scales named, sized and not yet there: name of a tensor -> what makes its values."""

    model: ModelProto
    promised: Mapping[str, Promised]


def quantised_graph(
    graph: StageGraph,
    formats: Mapping[str, str],
    limits: Mapping[str, float],
    results: Mapping[str, float] = NO_LIMITS,
) -> QuantisedGraph:
    """Return a copy of a stage's graph with the layers quantised that have a format.

    Args:
        formats: name of a layer -> "int8", "fp8", "int4" or "nvfp4".
        limits: name of a layer -> the largest activation that its scale reaches; where it has none, its input is not
            rounded.
        results: the same of what leaves the layer.

    Raises:
        CalibrationError: the graph's opset is older than a format.
    """
    model = ModelProto()
    model.CopyFrom(graph.model)
    chosen = {layer.node: layer for layer in graph.layers if layer.name in formats}
    _require_opset(graph, {formats[layer.name] for layer in chosen.values()})
    writer = _Writer(model, limits, results, chosen, formats)
    nodes = list(model.graph.node)
    del model.graph.node[:]
    for node in nodes:
        layer = chosen.get(node.name)
        model.graph.node.extend(writer.before(node, layer) if layer else [])
        behind = writer.behind(node, layer) if layer else []  # renames what the node gives
        model.graph.node.extend([node, *behind])
    _drop_unused(model, {layer.weight for layer in chosen.values()})
    return QuantisedGraph(model, writer.promised)


def rounded_bytes(layer: Layer, precision: str) -> int:
    """What a graph stores of a layer's weight in a format."""
    stored = parts(precision, layer.shape, layer.outputs_axis, layer.element_type)
    return sum(tensor_bytes(part.dims, ONNX_NUMBERS[part.data_type]) for part in stored)


def _require_opset(graph: StageGraph, precisions: set[str]) -> None:
    opset = next(item.version for item in graph.model.opset_import if item.domain in ("", "ai.onnx"))
    for precision in sorted(precisions):
        if opset < FIRST_OPSET[precision]:
            raise CalibrationError(
                f"{graph.stage} is of opset {opset}, and {precision} weights need {FIRST_OPSET[precision]}: choose "
                "int8, or export without --opset 20"
            )


class _Writer:
    """Makes the nodes and constants before and behind each quantised layer."""

    def __init__(
        self,
        model: ModelProto,
        limits: Mapping[str, float],
        results: Mapping[str, float],
        chosen: Mapping[str, Layer],
        formats: Mapping[str, str],
    ) -> None:
        self.model, self.limits, self.results, self.formats = model, limits, results, formats
        self.promised: dict[str, Promised] = {}
        self.shared: dict[tuple[str, str], str] = {}  # (activation, format) -> the rounded one, of FP8
        self.reach: dict[tuple[str, str], float] = {}  # (activation, format) -> limit of all layers that it enters
        for layer in chosen.values():
            key = layer.activation, formats[layer.name]
            if layer.name in limits:
                self.reach[key] = max(self.reach.get(key, 0.0), limits[layer.name])

    def before(self, node: NodeProto, layer: Layer) -> list[NodeProto]:
        """The nodes that round a layer's input and unpack its weight; the layer then reads those."""
        precision = self.formats[layer.name]
        made = self._weight(node, layer, precision)
        if layer.name in self.limits:
            made += self._activation(node, layer, precision)
        for each in made:
            each.metadata_props.extend(node.metadata_props)
        return made

    def _weight(self, node: NodeProto, layer: Layer, precision: str) -> list[NodeProto]:
        names = []
        for i, part in enumerate(parts(precision, layer.shape, layer.outputs_axis, layer.element_type)):
            name = f"{layer.weight}.{precision}.{part.suffix}"
            if name not in self.promised:
                self.promised[name] = Promised(layer, precision, i)
                declared = TensorProto(name=name, data_type=part.data_type, dims=part.dims)
                self.model.graph.initializer.append(declared)
            names.append(name)
        codes, scales, *factor = names
        made, unpacked = [], f"{layer.node}.unpacked"  # not ".weight": a node's name is its module's, and so is that
        if factor:
            wide = f"{layer.node}.scales"
            made.append(helper.make_node("DequantizeLinear", [scales, *factor], [wide], name=wide))
            scales = wide
        groups: dict[str, Any] = {"axis": layer.outputs_axis}
        if precision in FOUR_BITS:
            groups = {"axis": layer.inputs_axis, "block_size": group_of(precision, layer.inputs)}
        made.append(helper.make_node("DequantizeLinear", [codes, scales], [unpacked], name=unpacked, **groups))
        node.input[1] = unpacked
        return made

    def _activation(self, node: NodeProto, layer: Layer, precision: str) -> list[NodeProto]:
        # ONNX Runtime makes no INT8 product of a node whose DequantizeLinear is read by others too.
        key = layer.activation, precision
        if precision == "fp8" and key in self.shared:
            node.input[0] = self.shared[key]
            return []
        name = f"{layer.node}.input"
        made = self._rounding(name, layer.activation, name, self.reach[key], layer)
        node.input[0] = self.shared[key] = name
        return made

    def behind(self, node: NodeProto, layer: Layer) -> list[NodeProto]:
        """The nodes that round a layer's result; all that read it then read the rounded one."""
        if layer.name not in self.results:
            return []
        name = f"{layer.node}.result"
        node.output[0] = f"{name}.unrounded"
        for value in [value for value in self.model.graph.value_info if value.name == layer.result]:
            self.model.graph.value_info.add().CopyFrom(value)
            self.model.graph.value_info[-1].name = node.output[0]
        made = self._rounding(name, node.output[0], layer.result, self.results[layer.name], layer)
        for each in made:
            each.metadata_props.extend(node.metadata_props)
        return made

    def _rounding(self, name: str, tensor: str, rounded: str, limit: float, layer: Layer) -> list[NodeProto]:
        """A pair of nodes of this name from ``tensor`` to ``rounded``, in the layer's format."""
        precision = self.formats[layer.name]
        number = helper.tensor_dtype_to_np_dtype(layer.element_type)
        zero = np.zeros((), helper.tensor_dtype_to_np_dtype(CODES[precision]))
        # float16 has no smaller normal number, and a scale of zero would divide by it.
        smallest = np.finfo(np.float16 if number == np.float16 else np.float32).tiny
        scale = np.array(max(limit / FORMATS[precision].largest, smallest)).astype(number)
        constants = [f"{name}.scale", f"{name}.zero"]
        for constant, value in zip(constants, (scale, zero), strict=True):
            self.model.graph.initializer.append(numpy_helper.from_array(value, constant))
        codes = helper.make_node("QuantizeLinear", [tensor, *constants], [f"{name}.codes"], name=f"{name}.codes")
        back = helper.make_node("DequantizeLinear", [f"{name}.codes", *constants], [rounded], name=name)
        return [codes, back]


def _drop_unused(model: ModelProto, weights: set[str]) -> None:
    """Remove the weights that nothing reads any more, and the Transpose between them and their layers."""
    read = {name for node in model.graph.node for name in node.input} | {value.name for value in model.graph.output}
    for node in [node for node in model.graph.node if node.op_type == "Transpose" and node.input[0] in weights]:
        if node.output[0] not in read:
            model.graph.node.remove(node)
    read = {name for node in model.graph.node for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name not in weights or tensor.name in read]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
