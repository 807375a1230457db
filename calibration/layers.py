"""The layers of a stage that can be quantised: every matrix product and convolution with constant weights."""

import ast
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import onnx
from onnx import GraphProto, NodeProto, TensorProto

from bitdance_edge.runtime.bundle import MODULE_PATH

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
    shape: tuple[int, ...]
    weight_bytes: int  # as exported

    @property
    def elements(self) -> int:
        product = 1
        for size in self.shape:
            product *= size
        return product

    def format_for(self, precision: str) -> str:
        """The precision that this layer gets where its stage is given ``precision``.

        4-bit weights come in groups along the inputs of a matrix product (``MatMul``); a convolution, or a product with
        its bias inside (``Gemm``), is quantised to INT8 in their place.
        """
        return "int8" if precision == "int4" and self.operator != "MatMul" else precision


def find_layers(stage: str, graph: GraphProto) -> list[Layer]:
    """The layers of a stage's graph, in its order."""
    weights = {tensor.name: tensor for tensor in graph.initializer}
    nodes = [
        node
        for node in graph.node
        if node.op_type in OPERATORS and node.input[1] in weights and node.input[0] not in weights
    ]
    modules = [module_of(node) for node in nodes]
    seen = Counter(modules)
    return [
        Layer(
            name=f"{stage}:{module}" if module and seen[module] == 1 else f"{stage}:{module}#{node.name}",
            stage=stage,
            node=node.name,
            operator=node.op_type,
            activation=node.input[0],
            weight=node.input[1],
            shape=tuple(weights[node.input[1]].dims),
            weight_bytes=tensor_bytes(weights[node.input[1]]),
        )
        for node, module in zip(nodes, modules, strict=True)
    ]


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
