"""GroupNorm in the fewest passes over an image that ONNX Runtime has on a CPU.

As exported it is InstanceNormalization, which reads the image three times on one thread, a product and a sum; each of
them writes it. Here means are one pass that reads, squares another (a matrix product of each group with itself), and
BatchNormalization, which takes its statistics as inputs, normalises, multiplies and adds in one that writes.
"""

from dataclasses import dataclass

import numpy as np
from onnx import NodeProto, TensorProto, numpy_helper

from bitdance_edge.engines.rewriting import Graph, Nodes, attribute_of


@dataclass(frozen=True)
class GroupNorm:
    """A group norm as ``export/operators.py`` writes it, in the nodes of a graph.

    Args:
        grouped: its input ``[B, channels, height, width]`` as ``[B, groups, N]``.
        shape: what ``[B, groups, N]`` is reshaped to for its result.
        scale: a tensor of one value a channel, of all images or of each; None where there is none.
        shift: as ``scale``.
        nodes: what computes it from ``grouped``, the last one its result.
    """

    grouped: str
    shape: str
    groups: int
    channels: int
    epsilon: float
    scale: str | None
    shift: str | None
    nodes: list[NodeProto]


def group_norm(graph: Graph, node: NodeProto, exact: bool) -> bool:
    """Rewrite a GroupNorm, which is found by its InstanceNormalization.

    Args:
        exact: centre the image before it is squared, in a pass more: E[x^2] - E[x]^2 loses digits where the mean of a
            group is far from zero. What was rounded to INT8 has fewer digits than that loses.
    """
    norm = _found(graph, node)
    if norm is None:
        return False
    nodes = Nodes(graph, norm.nodes[-1].output[0])
    mean = nodes.add("ReduceMean", [norm.grouped, graph.constant("norm_axis", np.array([2]))], "mean", keepdims=1)
    images = nodes.add("Shape", [mean], "images")
    if exact:
        variance = _mean_of_squares(nodes, norm, _centred(nodes, norm, mean), images)
    else:
        squares = _mean_of_squares(nodes, norm, norm.grouped, images)
        square = nodes.add("Mul", [mean, mean], "square_of_mean")
        variance = nodes.add("Relu", [nodes.add("Sub", [squares, square], "difference")], "variance")
    inputs = [
        nodes.shaped(nodes.shaped(norm.grouped, "channels", 0, norm.channels, -1), "planes", 1, -1, 0),
        _operand_of_channels(nodes, norm, norm.scale, "scale", images),
        _operand_of_channels(nodes, norm, norm.shift, "shift", images),
        _statistic_of_channels(nodes, norm, mean, "means"),
        _statistic_of_channels(nodes, norm, variance, "variances"),
    ]
    planes = nodes.add("BatchNormalization", inputs, "normalised", epsilon=norm.epsilon)
    groups = nodes.add("Reshape", [planes, nodes.add("Shape", [norm.grouped], "shape_of_groups")], "groups")
    nodes.add("Reshape", [groups, norm.shape], "result")
    nodes.replace(norm.nodes)
    return True


def _centred(nodes: Nodes, norm: GroupNorm, mean: str) -> str:
    """The groups less their means, ``[1, B * groups, N]``, in one pass: as a BatchNormalization of spread 1."""
    means = nodes.shaped(mean, "mean_of_groups", -1)
    number = nodes.add("Shape", [means], "number_of_groups")
    one, zero = (nodes.add("ConstantOfShape", [number], str(value), value=_scalar(value)) for value in (1, 0))
    rows = nodes.shaped(norm.grouped, "rows", 1, -1, 0)
    return nodes.add("BatchNormalization", [rows, one, zero, means, one], "centred", epsilon=0.0)


def _mean_of_squares(nodes: Nodes, norm: GroupNorm, x: str, images: str) -> str:
    """The mean of the squared values ``[..., N]`` of each group, ``[B, groups, 1]``, the shape that ``images`` has."""
    row = nodes.shaped(x, "row", -1, 1, 0)
    column = nodes.add("Transpose", [row], "column", perm=[0, 2, 1])
    total = nodes.add("Reshape", [nodes.add("MatMul", [row, column], "product"), images], "total")
    number = nodes.add("Shape", [norm.grouped], "number_of_values", start=2)
    return nodes.add("Div", [total, nodes.add("Cast", [number], "number", to=TensorProto.FLOAT)], "squares")


def _statistic_of_channels(nodes: Nodes, norm: GroupNorm, statistic: str, name: str) -> str:
    """A statistic ``[B, groups, 1]`` for each channel of each image, ``[B * channels]``."""
    size = norm.channels // norm.groups
    each = nodes.graph.constant(f"norm_each_{size}", np.array([1, 1, size]))
    return nodes.shaped(nodes.add("Expand", [statistic, each], f"{name}_of_groups"), name, -1)


def _operand_of_channels(nodes: Nodes, norm: GroupNorm, tensor: str | None, name: str, images: str) -> str:
    """Scale or shift for each channel of each image, ``[B * channels]``; ``images`` is the shape ``[B, groups, 1]``."""
    graph = nodes.graph
    if tensor is not None and tensor not in graph.weights:
        return nodes.shaped(tensor, name, -1)
    neutral = np.full(norm.channels, 1 if name == "scale" else 0, np.float32)
    values = neutral if tensor is None else graph.weight(tensor)
    table = graph.constant(f"{tensor or f'norm_no_{name}_{norm.channels}'}/of_groups", values.reshape(norm.groups, -1))
    return nodes.shaped(nodes.add("Expand", [table, images], f"{name}_of_images"), name, -1)


def _scalar(value: float) -> TensorProto:
    return numpy_helper.from_array(np.array([value], np.float32))


def _found(graph: Graph, node: NodeProto) -> GroupNorm | None:
    """The GroupNorm that a node is of, if the graph has it as it is exported."""
    if node.op_type != "InstanceNormalization" or len(node.input) != 3:
        return None
    ungrouping = graph.only_reader(node.output[0])
    if ungrouping is None or ungrouping.op_type != "Reshape" or not _is_plain(graph, node):
        return None
    found, operands = [node, ungrouping], {}
    for operator in ("Mul", "Add"):
        x, following = found[-1].output[0], graph.only_reader(found[-1].output[0])
        if following is not None and following.op_type == operator and (tensor := _operand(following, x)):
            found.append(following)
            operands[operator] = tensor
    dims, groups = graph.dims(found[-1].output[0]), graph.weights[node.input[1]].dims[0]
    channels = dims[1] if dims is not None and len(dims) == 4 else 0
    if not isinstance(channels, int) or channels < groups or channels % groups:
        return None
    if not all(_is_of_channels(graph, tensor, channels) for tensor in operands.values()):
        return None
    return GroupNorm(
        grouped=node.input[0],
        shape=ungrouping.input[1],
        groups=groups,
        channels=channels,
        epsilon=attribute_of(node, "epsilon", 1e-5),
        scale=operands.get("Mul"),
        shift=operands.get("Add"),
        nodes=found,
    )


def _is_plain(graph: Graph, node: NodeProto) -> bool:
    """Whether an InstanceNormalization is in float32, and multiplies by 1 and adds 0."""
    neutral = zip(node.input[1:], (1, 0), strict=True)
    return graph.element_type(node.input[1]) == TensorProto.FLOAT and all(
        name in graph.weights and (graph.weight(name) == value).all() for name, value in neutral
    )


def _operand(node: NodeProto, x: str) -> str | None:
    """What a node computes ``x`` with, if that is something else."""
    others = [name for name in node.input if name != x]
    return others[0] if len(others) == 1 else None


def _is_of_channels(graph: Graph, name: str, channels: int) -> bool:
    """Whether a tensor holds one value a channel, for all images or for each."""
    dims = graph.weights[name].dims if name in graph.weights else graph.dims(name)
    return dims is not None and len(dims) in (3, 4) and list(dims)[-3:] == [channels, 1, 1]
