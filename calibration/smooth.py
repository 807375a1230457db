"""SmoothQuant: large activation channels made smaller and their weights larger, without changing what is computed.

Each input channel j of a layer is divided by ``s_j = max|X_j|^a / max|W_j|^(1-a)`` and its weights are multiplied by it
(G. Xiao et al., arXiv 2211.10438, eq. 4). The division is folded into the constants that make the channel (see
``channels``): the scale and bias of a norm, the columns of a Linear. Where a part of an input of the graph is added, as
the modulation shifts the head's norms, no constant makes that part: it is multiplied by the factors. A layer whose
input cannot be traced to any of these is left unchanged. Layers that share a producer share their factors.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from onnx import ModelProto, NodeProto, ValueInfoProto, helper, numpy_helper

from bitdance_edge.calibration.channels import Fold, Site, Tracer
from bitdance_edge.calibration.graphs import Layer, StageGraph, load_weight, load_weights, transpose_weights

SMALLEST, LARGEST = 1e-3, 1e3  # factors are kept within; a channel that is always zero has none of its own


def smoothed(graph: StageGraph, channels: Mapping[str, np.ndarray], strength: float) -> tuple[StageGraph, list[str]]:
    """Return a stage with factors folded in, and the names of the layers that have some.

    Args:
        channels: name of a layer -> largest magnitude of each of its input channels, float32 ``[inputs]``; layers
            without are left unchanged.
        strength: a, from 0 (all difficulty stays with the activations) to 1.
    """
    model, folder = ModelProto(), graph.folder
    model.CopyFrom(graph.model)
    load_weights(model, folder, (layer.weight for layer in graph.layers if layer.transposed))
    transpose_weights(model, graph.layers)
    done = []
    for group in _groups(model, graph.layers):
        sites = [site for site in group if site.layer.name in channels]
        if len(sites) != len(group) or not _private(model, group):
            continue
        weights = {site.layer.name: load_weight(model, folder, site.layer.weight) for site in group}
        inputs = np.maximum.reduce([channels[site.layer.name] for site in group])
        largest = np.maximum.reduce([_input_maximum(weights[site.layer.name], site.layer) for site in group])
        factors = _factors(inputs, largest, strength)
        for fold in dict.fromkeys(fold for site in group for fold in site.folds):
            if fold.behind:
                _put_product(model, fold, len(factors))
            _scale(model, folder, fold, 1 / factors)
        for site in group:
            axis = 1 if _transposed(model, site.layer) else 0
            _scale(model, folder, Fold(site.layer.weight, axis, 0), factors)
            done.append(site.layer.name)
    return graph.changed(model), done


def _factors(inputs: np.ndarray, weights: np.ndarray, strength: float) -> np.ndarray:
    usable = (inputs > 0) & (weights > 0)
    safe_inputs, safe_weights = np.where(usable, inputs, 1), np.where(usable, weights, 1)
    factors = safe_inputs.astype(np.float64) ** strength / safe_weights.astype(np.float64) ** (1 - strength)
    return np.where(usable, np.clip(factors, SMALLEST, LARGEST), 1.0)


def _input_maximum(weight: np.ndarray, layer: Layer) -> np.ndarray:
    """Return the largest weight of each input of a matrix product, ``[inputs]``."""
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
    """Make all readers of a tensor read its product with a new constant of ones."""
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
    """Yield the layers that can be smoothed, grouped by the constants and tensors that they share."""
    tracer = Tracer(model)
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
    """Whether no node outside the group reads what will be divided."""
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
