"""SmoothQuant: large activation channels made smaller and their weights larger, without changing what is computed.

Each input channel j of a layer is divided by ``s_j = max|X_j|^a / max|W_j|^(1-a)`` and its weights are multiplied by it
(G. Xiao et al., arXiv 2211.10438, eq. 4). The division is folded into what makes the channel: the scale (and bias) of a
norm, the columns of a Linear, through additions, products, reshapes of leading axes and splits of the last one. Where a
part of an input of the graph is added, as the head's norms are shifted by what the modulation gives, no constant makes
that part: one product with the factors is put behind it. A layer whose input cannot be traced to any of these is left.
Layers that share a producer share their factors.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnx import ModelProto, NodeProto, ValueInfoProto, helper, numpy_helper

from bitdance_edge.calibration.graphs import load_weight, turn_weights
from bitdance_edge.calibration.layers import Layer

NORMS = ("RMSNormalization", "LayerNormalization")
LINEAR = frozenset({"Add", "Mul", "MatMul", "Gemm", "Split", "Unsqueeze"})  # what a factor passes through
SMALLEST, LARGEST = 1e-3, 1e3  # factors are kept within; a channel that is always zero has none of its own


@dataclass(frozen=True)
class Fold:
    """A constant whose last axis (or, where ``axis`` says so, another) takes the division, from channel ``first``.

    Where ``behind`` names a tensor, the constant is yet to be made: ones that the tensor is multiplied by.
    """

    constant: str
    axis: int
    first: int
    behind: str = ""


Found = tuple[tuple[Fold, ...], frozenset[str]]  # constants to divide, tensors on the way to them


@dataclass(frozen=True)
class Site:
    """A layer with all constants that have to be divided, and the tensors on the way to them."""

    layer: Layer
    folds: tuple[Fold, ...]
    path: frozenset[str]


def smoothed(
    skeleton: ModelProto, folder: Path, layers: list[Layer], channels: Mapping[str, np.ndarray], strength: float
) -> tuple[ModelProto, list[str]]:
    """A copy of a graph with factors folded in, and the names of the layers that have some.

    Args:
        channels: name of a layer -> largest magnitude of each of its input channels.
        strength: a, from 0 (all difficulty stays with the activations) to 1.
    """
    model = ModelProto()
    model.CopyFrom(skeleton)
    turned = [layer for layer in layers if layer.transposed]
    for layer in turned:
        load_weight(model, folder, layer.weight)
    turn_weights(model, turned)
    done = []
    for group in _groups(model, layers):
        sites = [site for site in group if site.layer.name in channels]
        if len(sites) != len(group) or not _private(model, group):
            continue
        weights = {site.layer.name: load_weight(model, folder, site.layer.weight) for site in group}
        inputs = np.maximum.reduce([channels[site.layer.name] for site in group])
        held = np.maximum.reduce([_input_maximum(weights[site.layer.name], site.layer) for site in group])
        factors = _factors(inputs, held, strength)
        for fold in dict.fromkeys(fold for site in group for fold in site.folds):
            if fold.behind:
                _put_product(model, fold, len(factors))
            _scale(model, folder, fold, 1 / factors)
        for site in group:
            axis = 1 if _transposed(model, site.layer) else 0
            _scale(model, folder, Fold(site.layer.weight, axis, 0), factors)
            done.append(site.layer.name)
    return model, done


def _factors(inputs: np.ndarray, weights: np.ndarray, strength: float) -> np.ndarray:
    usable = (inputs > 0) & (weights > 0)
    safe_inputs, safe_weights = np.where(usable, inputs, 1), np.where(usable, weights, 1)
    factors = safe_inputs.astype(np.float64) ** strength / safe_weights.astype(np.float64) ** (1 - strength)
    return np.where(usable, np.clip(factors, SMALLEST, LARGEST), 1.0)


def _input_maximum(weight: np.ndarray, layer: Layer) -> np.ndarray:
    """Largest weight of each input of a matrix product."""
    return np.abs(weight).max(axis=1 if layer.operator == "MatMul" else 0)


def _transposed(model: ModelProto, layer: Layer) -> bool:
    node = next(node for node in model.graph.node if node.name == layer.node)
    return any(attribute.name == "transB" and attribute.i for attribute in node.attribute)


def _scale(model: ModelProto, folder: Path, fold: Fold, factors: np.ndarray) -> None:
    values = load_weight(model, folder, fold.constant).copy()
    part = [slice(None)] * values.ndim
    part[fold.axis] = slice(fold.first, fold.first + len(factors))
    shape = [1] * values.ndim
    shape[fold.axis] = -1
    values[tuple(part)] = (values[tuple(part)] * factors.reshape(shape)).astype(values.dtype)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == fold.constant)
    tensor.CopyFrom(numpy_helper.from_array(values, fold.constant))


def _put_product(model: ModelProto, fold: Fold, width: int) -> None:
    """Let all that read a tensor read its product with a new constant of ones."""
    graph, product = model.graph, f"{fold.behind}/smoothed"
    for node in graph.node:
        for i, name in enumerate(node.input):
            if name == fold.behind:
                node.input[i] = product
    value = ValueInfoProto()
    value.CopyFrom(next(value for value in graph.value_info if value.name == fold.behind))
    value.name = product
    graph.value_info.append(value)
    dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
    graph.initializer.append(numpy_helper.from_array(np.ones(width, dtype), fold.constant))
    made_at = next(i for i, node in enumerate(graph.node) if fold.behind in node.output)
    graph.node.insert(made_at + 1, helper.make_node("Mul", [fold.behind, fold.constant], [product], name=product))


def _groups(model: ModelProto, layers: list[Layer]) -> Iterator[list[Site]]:
    """Layers that can be smoothed, those that share a constant or a tensor together."""
    tracer = _Tracer(model)
    sites = [site for layer in layers if (site := tracer.site(layer)) is not None]
    groups: list[list[Site]] = []
    for site in sites:
        touched = [group for group in groups if any(_overlap(site, other) for other in group)]
        merged = [site, *(other for group in touched for other in group)]
        groups = [group for group in groups if group not in touched]
        groups.append(merged)
    for group in groups:
        same = len({site.layer.shape[0] for site in group}) == 1
        whole = all(a == b or a.constant != b.constant or _apart(a, b, group) for a, b in _pairs(group))
        if same and whole:
            yield group


def _pairs(group: list[Site]) -> Iterator[tuple[Fold, Fold]]:
    folds = [fold for site in group for fold in site.folds]
    return ((a, b) for i, a in enumerate(folds) for b in folds[i + 1 :])


def _apart(one: Fold, other: Fold, group: list[Site]) -> bool:
    return abs(one.first - other.first) >= group[0].layer.shape[0]


def _overlap(one: Site, other: Site) -> bool:
    width = max(one.layer.shape[0], other.layer.shape[0])
    shared = any(a.constant == b.constant and abs(a.first - b.first) < width for a in one.folds for b in other.folds)
    return shared or one.layer.activation == other.layer.activation


def _private(model: ModelProto, group: list[Site]) -> bool:
    """No node outside the group reads what will be divided."""
    tensors = frozenset[str]().union(*(site.path for site in group))
    layers = {site.layer.node for site in group}
    readers: dict[str, list[NodeProto]] = defaultdict(list)
    for node in model.graph.node:
        for name in node.input:
            readers[name].append(node)
    outputs = {value.name for value in model.graph.output}
    if tensors & outputs:
        return False
    return all(
        node.name in layers or any(name in tensors for name in node.output)
        for tensor in tensors
        for node in readers[tensor]
    )


class _Tracer:
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
        """A part of the last axis, whose parts are all as wide as the tensor (so that it is the last axis)."""
        if self._given(node.input[0]):
            whole = first == 0 and self.last.get(name) == width
            return ((Fold(f"{name}/factors", 0, 0, behind=name),), frozenset()) if whole else None
        axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
        if axis < 0 or axis >= 1:
            part = list(node.output).index(name)
            return self._trace(node.input[0], width, first + part * width)
        return None

    def _given(self, name: str) -> bool:
        """Whether a tensor is an input of the graph, or one in another shape."""
        node = self.producers.get(name)
        return name in self.inputs or (node is not None and node.op_type == "Reshape" and self._given(node.input[0]))
