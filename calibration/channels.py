"""Which constants of a graph make a channel of a tensor, so that dividing them divides the channel.

Traced through norms, products, additions, reshapes of leading axes and splits of the last one.
"""

from collections import defaultdict
from dataclasses import dataclass

from onnx import ModelProto, NodeProto

from bitdance_edge.calibration.graphs import Layer

NORMS = ("RMSNormalization", "LayerNormalization")
LINEAR = frozenset({"Add", "Mul", "MatMul", "Gemm", "Split", "Unsqueeze"})  # what a factor passes through


@dataclass(frozen=True)
class Fold:
    """A constant that is divided along ``axis``, from channel ``first`` on.

    Where ``behind`` names a tensor, the constant does not exist yet: ones that the tensor is multiplied by.
    """

    constant: str
    axis: int
    first: int
    behind: str = ""


Found = tuple[tuple[Fold, ...], frozenset[str]]  # constants to divide, tensors on the way to them


@dataclass(frozen=True)
class Site:
    """A layer with all constants to divide, and the tensors on the way to them."""

    layer: Layer
    folds: tuple[Fold, ...]
    path: frozenset[str]


class Tracer:
    """Follows a tensor back to the constants that can take a factor for each channel of its last axis."""

    def __init__(self, model: ModelProto) -> None:
        self.inputs = {value.name for value in model.graph.input}
        self.last = {  # tensor -> size of its last axis, 0 where it is not known
            value.name: value.type.tensor_type.shape.dim[-1].dim_value
            for value in model.graph.value_info
            if value.type.tensor_type.shape.dim
        }
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self.producers = {name: node for node in model.graph.node for name in node.output}
        self.readers: dict[str, list[str]] = defaultdict(list)  # tensor -> operators that read it
        for node in model.graph.node:
            for name in node.input:
                self.readers[name].append(node.op_type)

    def site(self, layer: Layer) -> Site | None:
        """What to divide for the inputs of a layer; None where they cannot be traced."""
        if layer.operator == "Conv":
            return None
        width = layer.shape[0] if layer.operator == "MatMul" else layer.shape[1]
        found = self._trace(layer.activation, width, 0)
        return None if found is None else Site(layer, *found)

    def _trace(self, name: str, width: int, first: int) -> Found | None:
        """Constants to divide so that channels ``first`` to ``first + width`` of a tensor are divided; None if none."""
        if name in self.constants:
            dims = self.constants[name].dims
            fits = len(self.readers[name]) == 1 and dims and dims[-1] >= first + width
            return ((Fold(name, len(dims) - 1, first),), frozenset()) if fits else None
        node = self.producers.get(name)
        if node is None or not LINEAR.issuperset(self.readers[name]):
            return None
        found = self._through(node, name, width, first)
        return None if found is None else (found[0], found[1] | {name})

    def _through(self, node: NodeProto, name: str, width: int, first: int) -> Found | None:
        if node.op_type in NORMS:
            return self._all([constant for constant in node.input[1:] if constant], width, first)
        if node.op_type == "MatMul":
            return self._trace(node.input[1], width, first) if node.input[1] in self.constants else None
        if node.op_type == "Add":
            return self._all(list(node.input), width, first)
        if node.op_type == "Mul":
            return self._trace(node.input[0], width, first) or self._trace(node.input[1], width, first)
        if node.op_type == "Split":
            return self._split(node, name, width, first)
        if node.op_type == "Unsqueeze":  # of a leading axis: the channels stay last
            return self._trace(node.input[0], width, first)
        return None

    def _all(self, names: list[str], width: int, first: int) -> Found | None:
        folds: tuple[Fold, ...] = ()
        path: frozenset[str] = frozenset()
        for name in names:
            found = self._trace(name, width, first)
            if found is None:
                return None
            folds, path = folds + found[0], path | found[1]
        return folds, path

    def _split(self, node: NodeProto, name: str, width: int, first: int) -> Found | None:
        """Trace a part of the last axis; all parts are as wide as the tensor."""
        if self._given(node.input[0]):
            whole = first == 0 and self.last.get(name) == width
            return ((Fold(f"{name}/factors", 0, 0, behind=name),), frozenset()) if whole else None
        axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
        if axis < 0 or axis >= 1:
            part = list(node.output).index(name)
            return self._trace(node.input[0], width, first + part * width)
        return None

    def _given(self, name: str) -> bool:
        """Whether a tensor is an input of the graph, or such an input reshaped."""
        node = self.producers.get(name)
        return name in self.inputs or (node is not None and node.op_type == "Reshape" and self._given(node.input[0]))
