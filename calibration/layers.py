"""The layers of a stage that can be quantised: every matrix product and convolution with constant weights."""

import ast
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import onnx
from onnx import GraphProto, NodeProto, TensorProto

from bitdance_edge.runtime.bundle.module_paths import MODULE_PATH

OPERATORS = ("MatMul", "Gemm", "Conv")


@dataclass(frozen=True)
class Layer:
    """One node with weights. ``name`` is stage and PyTorch module, the same in every export of a model."""

    name: str
    stage: str
    node: str
    operator: str
    activation: str  # tensor that enters
    weight: str  # initialiser
    transposed: bool  # a Transpose stands between the two, as where weights are a checkpoint's own
    shape: tuple[int, ...]  # as the node reads it
    weight_bytes: int  # as exported

    def format_for(self, precision: str) -> str:
        """The precision that this layer gets where its stage is given ``precision``.

        4-bit weights come in groups along the inputs of a matrix product (``MatMul``); a convolution, or a product with
        its bias inside (``Gemm``), is quantised to INT8 in their place.
        """
        return "int8" if precision == "int4" and self.operator != "MatMul" else precision


def find_layers(stage: str, graph: GraphProto) -> list[Layer]:
    """The layers of a stage's graph, in its order."""
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
    ]
    modules = [module_of(node) for node in nodes]
    seen = Counter(modules)
    layers = []
    for node, module in zip(nodes, modules, strict=True):
        turned = node.input[1] in transposed
        weight = weights[transposed.get(node.input[1], node.input[1])]
        layers.append(
            Layer(
                name=f"{stage}:{module}" if module and seen[module] == 1 else f"{stage}:{module}#{node.name}",
                stage=stage,
                node=node.name,
                operator=node.op_type,
                activation=node.input[0],
                weight=weight.name,
                transposed=turned,
                shape=tuple(reversed(weight.dims)) if turned else tuple(weight.dims),
                weight_bytes=tensor_bytes(weight),
            )
        )
    return layers


def module_of(node: NodeProto) -> str:
    """The innermost PyTorch module that a node was traced in, "" where it does not say."""
    for entry in node.metadata_props:
        if entry.key == MODULE_PATH:
            *modules, _ = ast.literal_eval(entry.value)  # root first, the traced operation last
            return modules[-1] if modules else ""
    return ""


def tensor_bytes(tensor: TensorProto) -> int:
    """Bytes of an initialiser, whether or not its data are loaded."""
    elements = 1
    for size in tensor.dims:
        elements *= size
    four_bit = tensor.data_type in (TensorProto.INT4, TensorProto.UINT4)
    return (
        (elements + 1) // 2 if four_bit else elements * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    )


def by_name(layers: Mapping[str, list[Layer]]) -> dict[str, Layer]:
    """Layers of all stages by their names."""
    return {layer.name: layer for found in layers.values() for layer in found}
