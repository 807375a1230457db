"""Stages' graphs as exported: their layers with constant weights, and the weights, read when they are needed."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.external_data_helper import uses_external_data

from bitdance_edge.calibration.weights import BLOCK, FOUR_BITS
from bitdance_edge.runtime.bundle.dtypes import ONNX_NUMBERS, tensor_bytes
from bitdance_edge.runtime.bundle.external_data import mapped_external, read_external
from bitdance_edge.runtime.bundle.graph_file import read_graph
from bitdance_edge.runtime.bundle.manifest import Bundle
from bitdance_edge.runtime.bundle.module_paths import innermost_module
from bitdance_edge.runtime.bundle.specs import StageSpec
from bitdance_edge.runtime.errors import BundleError

OPERATORS = ("MatMul", "Gemm", "Conv")
# Inputs or outputs below which a matrix is narrow: those that read and make the bits of tokens are, 32 wide. They hold
# few weights, and flip more bits than any others.
NARROW = 64


@dataclass(frozen=True)
class Layer:
    """One node with weights. ``name`` is stage and PyTorch module, the same in every export of a model."""

    name: str
    stage: str
    node: str
    operator: str
    activation: str  # tensor that enters
    result: str  # tensor that leaves
    last: bool  # what leaves reaches an output of the stage without passing another layer
    weight: str  # initialiser
    transposed: bool  # a Transpose stands between the two, as where weights are a checkpoint's own
    shape: tuple[int, ...]  # as the node reads it
    outputs_axis: int  # of that shape
    element_type: int  # of the weight, as ONNX numbers it
    weight_bytes: int  # as exported

    @property
    def inputs_axis(self) -> int:
        """Of a matrix: the axis that is not that of the outputs."""
        return 1 - self.outputs_axis

    @property
    def inputs(self) -> int:
        """Inputs of each output; of a convolution those of its whole kernel."""
        return prod(self.shape) // self.shape[self.outputs_axis]

    def format_for(self, precision: str) -> str:
        """The format that this layer gets where its stage is given ``precision``.

        4-bit weights come in groups along the inputs of a matrix product. A convolution, or a product with its bias
        inside (``Gemm``), or one whose inputs do not divide into groups, is given 8 bits of the same kind instead; so
        is a narrow one.
        """
        if precision not in FOUR_BITS or self._takes_four_bits:
            return precision
        return "int8" if precision == "int4" else "fp8"

    @property
    def _takes_four_bits(self) -> bool:
        return self.operator == "MatMul" and self.inputs % BLOCK == 0 and min(self.shape) >= NARROW

    def rounds_input(self, precision: str) -> bool:
        """Whether its input is rounded too where its stage is given ``precision``: 4 bits are for weights alone."""
        return precision not in FOUR_BITS or self.operator != "MatMul"

    def rounds_result(self, precision: str) -> bool:
        """Whether its result is rounded too where its stage is given ``precision``.

        ONNX Runtime multiplies a convolution in INT8 only where its result is INT8. What makes pixels, or predictions
        whose signs are bits, keeps all its digits.
        """
        return self.operator == "Conv" and self.format_for(precision) == "int8" and not self.last


@dataclass(frozen=True)
class StageGraph:
    """One stage to be quantised.

    Attributes:
        model: the graph; its weights are in files of ``folder``, but for those that SmoothQuant changed.
        prompt_tokens: of the longest prompt, by which memory is estimated where a dimension is free.
    """

    stage: str
    spec: StageSpec
    folder: Path
    model: ModelProto
    layers: list[Layer]
    prompt_tokens: int

    @classmethod
    def read(cls, bundle: Bundle, stage: str) -> "StageGraph":
        """Read the graph of a stage after checking its files."""
        return cls.at(bundle, stage, bundle.verified(stage))

    @classmethod
    def at(cls, bundle: Bundle, stage: str, path: Path) -> "StageGraph":
        """Read the graph of a stage whose files have been checked."""
        spec, model = bundle.stage(stage), read_skeleton(path)
        layers = find_layers(stage, model.graph)
        return cls(stage, spec, path.parent, model, layers, bundle.model.prompt_tokens)

    def changed(self, model: ModelProto) -> "StageGraph":
        """Return the same stage with another graph."""
        return replace(self, model=model, layers=find_layers(self.stage, model.graph))


def layers_by_name(graphs: Mapping[str, StageGraph]) -> dict[str, Layer]:
    """Layers of all stages by their names."""
    return {layer.name: layer for graph in graphs.values() for layer in graph.layers}


def read_skeleton(path: Path) -> ModelProto:
    """Read a graph with its weights left in their file; BundleError: it is damaged, or layers share a name."""
    model = read_graph(path, onnx.load)
    names = Counter(node.name for node in model.graph.node if node.op_type in OPERATORS)
    if twice := [name for name, count in names.items() if count > 1]:
        raise BundleError(f"{path} has several nodes of the name {twice[0][:80]!r}; copy or export it again")
    return model


def find_layers(stage: str, graph: GraphProto) -> list[Layer]:
    """List the products and convolutions with constant weights, in the graph's order."""
    weights = {tensor.name: tensor for tensor in graph.initializer}
    transposed = {
        node.output[0]: node.input[0]
        for node in graph.node
        if node.op_type == "Transpose" and node.input[0] in weights and len(weights[node.input[0]].dims) == 2
    }
    nodes = [
        node
        for node in graph.node
        if node.op_type in OPERATORS
        and (node.input[1] in weights or (node.op_type == "MatMul" and node.input[1] in transposed))
        and node.input[0] not in weights
        and (node.op_type == "Conv" or len(weights[transposed.get(node.input[1], node.input[1])].dims) == 2)
    ]
    modules = [innermost_module(node.metadata_props) for node in nodes]
    found, last = Counter(modules), _last(graph, {node.name for node in nodes})
    layers = []
    for node, module in zip(nodes, modules, strict=True):
        behind = node.input[1] in transposed
        weight = weights[transposed.get(node.input[1], node.input[1])]
        layers.append(
            Layer(
                name=f"{stage}:{module}" if module and found[module] == 1 else f"{stage}:{module}#{node.name}",
                stage=stage,
                node=node.name,
                operator=node.op_type,
                activation=node.input[0],
                result=node.output[0],
                last=node.name in last,
                weight=weight.name,
                transposed=behind,
                shape=tuple(reversed(weight.dims)) if behind else tuple(weight.dims),
                outputs_axis=_outputs_axis(node),
                element_type=weight.data_type,
                weight_bytes=tensor_bytes(weight.dims, ONNX_NUMBERS[weight.data_type]),
            )
        )
    return layers


def load_weights(model: ModelProto, folder: Path, names: Iterable[str]) -> None:
    """Read these initialisers into the graph, where they are still in a file of ``folder``."""
    wanted = set(names)
    for tensor in model.graph.initializer:
        if tensor.name in wanted and uses_external_data(tensor):
            tensor.raw_data = read_external(tensor.external_data, folder)
            tensor.data_location = TensorProto.DEFAULT
            del tensor.external_data[:]


def load_weight(model: ModelProto, folder: Path, name: str) -> np.ndarray:
    """Read one initialiser into the graph, and return its values."""
    load_weights(model, folder, [name])
    return numpy_helper.to_array(next(tensor for tensor in model.graph.initializer if tensor.name == name))


def transpose_weights(model: ModelProto, layers: Iterable[Layer]) -> None:
    """Give layers whose loaded weights are behind a Transpose the transposed weights themselves."""
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = {node.name: node for node in model.graph.node}
    for layer in layers:
        if not layer.transposed:
            continue
        values = numpy_helper.to_array(tensors[layer.weight]).T.copy()
        tensors[layer.weight].CopyFrom(numpy_helper.from_array(values, layer.weight))
        transpose = next(node for node in model.graph.node if nodes[layer.node].input[1] in node.output)
        nodes[layer.node].input[1] = layer.weight
        model.graph.node.remove(transpose)


def weight_matrix(graph: StageGraph, layer: Layer) -> tuple[np.ndarray, str]:
    """The weight of a layer as ``[outputs, inputs]``, mapped from its file, and the name of its element type."""
    tensor = next(tensor for tensor in graph.model.graph.initializer if tensor.name == layer.weight)
    values = (
        mapped_external(tensor.external_data, graph.folder, _stored_type(tensor))
        if uses_external_data(tensor)
        else numpy_helper.to_array(tensor)
    )
    values = values.reshape(tuple(tensor.dims))
    if len(values.shape) > 2:
        values = values.reshape(len(values), -1)
    elif layer.outputs_axis == (0 if layer.transposed else 1):
        values = values.T
    return values, ONNX_NUMBERS[tensor.data_type]


def _stored_type(tensor: TensorProto) -> np.dtype:
    return np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type))


def _last(graph: GraphProto, layers: set[str]) -> set[str]:
    """The names of those layers from which an output of the graph is reached without passing another of them."""
    reaching, last = {value.name for value in graph.output}, set()
    for node in reversed(graph.node):  # in topological order: readers come after what they read
        if reaching.isdisjoint(node.output):
            continue
        if node.name in layers:
            last.add(node.name)
        else:
            reaching.update(node.input)
    return last


def _outputs_axis(node: NodeProto) -> int:
    """The axis of the outputs in the weight of a node."""
    if node.op_type == "Gemm":
        return 0 if any(attribute.name == "transB" and attribute.i for attribute in node.attribute) else 1
    return 1 if node.op_type == "MatMul" else 0
