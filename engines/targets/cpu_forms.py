"""The forms of products and convolutions that ONNX Runtime runs fastest on a CPU (docs/speed.md).

Applied node by node: of a calibrated stage, quantised layers get the forms of ``cpu_int8``, and the others theirs.
"""

import numpy as np
from onnx import NodeProto, TensorProto

from bitdance_edge.engines.rewriting import Graph, Nodes, make_node
from bitdance_edge.engines.targets.cpu_int8 import int8_convolution
from bitdance_edge.engines.targets.cpu_norms import group_norm
from bitdance_edge.engines.targets.cpu_products import bias_behind, keep_dimensions
from bitdance_edge.runtime.bundle.stage_names import StageName

POINTWISE_STAGES = (StageName.BACKBONE, StageName.HEAD)  # whose products have few rows
CONVOLUTION_STAGES = (StageName.DECODER, StageName.ENCODER)
CHANNEL_BLOCK = 16  # channels that ONNX Runtime's blocked convolutions on x86 with AVX-512 take together; 8 with AVX2
TILE = 4  # pixels of the output that Winograd's F(4x4, 3x3) makes from one tile of the input
# Winograd's minimal filtering with the points 0, 1, -1, 2, -2 (Lavin and Gray, https://arxiv.org/abs/1509.09308): what
# a tile, a filter and the products are multiplied by from the left, and transposed from the right.
WINOGRAD_INPUT = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
WINOGRAD_FILTER = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
WINOGRAD_OUTPUT = (
    (1, 1, 1, 1, 1, 0),
    (0, 1, -1, 2, -2, 0),
    (0, 1, 1, 4, 4, 0),
    (0, 1, -1, 8, -8, 1),
)


def apply_fast_forms(graph: Graph, stage: str) -> int:
    """Rewrite the layers of a stage that have a faster form; returns the number of layers rewritten."""
    if stage == StageName.MODULATION:
        return keep_dimensions(graph)
    if stage not in (*POINTWISE_STAGES, *CONVOLUTION_STAGES):
        return 0
    quantised = sum(int8_convolution(graph, node) for node in list(graph.model.graph.node))
    form = pointwise_product if stage in POINTWISE_STAGES else winograd_convolution
    products = sum(form(graph, node) for node in list(graph.model.graph.node))
    norms = sum(group_norm(graph, node, exact=not quantised) for node in list(graph.model.graph.node))
    return quantised + products + norms


def pointwise_product(graph: Graph, node: NodeProto) -> bool:
    """Rewrite a product with constant weights as a 1x1 convolution over as many pixels as it has rows, channels last.

    ONNX Runtime turns the two transposes into the reordering of its blocked convolution, which is faster than its
    matrix product where rows are few.
    """
    if node.op_type != "MatMul" or graph.element_type(node.input[0]) != TensorProto.FLOAT:
        return False
    weight, dims = _product_weight(graph, node.input[1]), graph.dims(node.input[0])
    if weight is None or dims is None or not 2 <= len(dims) <= 4 or any(size % CHANNEL_BLOCK for size in weight.shape):
        return False
    rank, replaced, bias = len(dims), [node], bias_behind(graph, node, weight.shape[1])
    if bias is not None:
        replaced.append(bias[0])
    x, result = node.input[0], replaced[-1].output[0]
    axes = graph.constant(f"leading_axes_{4 - rank}", np.arange(4 - rank)) if rank < 4 else ""
    kernel = graph.constant(f"{node.input[1]}/kernel", weight.T[:, :, None, None])
    nodes = [make_node("Unsqueeze", [x, axes], f"{result}/pixels")] if axes else []
    nodes += [
        make_node("Transpose", [f"{result}/pixels" if axes else x], f"{result}/channels_first", perm=[0, 3, 1, 2]),
        make_node("Conv", [f"{result}/channels_first", kernel, *([bias[1]] if bias else [])], f"{result}/mixed"),
        make_node("Transpose", [f"{result}/mixed"], f"{result}/rows" if axes else result, perm=[0, 2, 3, 1]),
    ]
    if axes:
        nodes.append(make_node("Squeeze", [f"{result}/rows", axes], result))
    graph.replace(replaced, nodes)
    return True


def _product_weight(graph: Graph, name: str) -> np.ndarray | None:
    """The constant ``[inputs, outputs]`` that a product reads, also through a Transpose; None where it has none."""
    if name in graph.weights:
        return graph.weight(name) if len(graph.weights[name].dims) == 2 else None
    node = graph.producers.get(name)
    if node is None or node.op_type != "Transpose" or node.input[0] not in graph.weights:
        return None
    return graph.weight(node.input[0]).T if len(graph.weights[node.input[0]].dims) == 2 else None


def winograd_convolution(graph: Graph, node: NodeProto) -> bool:
    """Rewrite a 3x3 convolution with a quarter of the multiplications, where images are large against the filters.

    Transformed filters take four times their memory, so that this is done where they are smaller than the transformed
    image. Tiles are cut out and transformed by a convolution of one channel, and put together by its transpose: both
    run at the speed of matrix products.
    """
    grid = _winograd_tiles(graph, node)
    if grid is None:
        return False
    down, across = grid
    height, width, side = down * TILE, across * TILE, TILE + 2
    outputs, inputs = graph.weights[node.input[1]].dims[:2]
    forward, turn, backward = (np.array(table) for table in (WINOGRAD_INPUT, WINOGRAD_FILTER, WINOGRAD_OUTPUT))
    cut = np.einsum("ia,jb->ijab", forward, forward).reshape(side * side, 1, side, side)
    join = np.einsum("ai,bj->ijab", backward, backward).reshape(side * side, 1, TILE, TILE)
    turned = np.einsum("ia,jb,ocab->ijoc", turn, turn, graph.weight(node.input[1]).astype(np.float64), optimize=True)
    nodes = Nodes(graph, node.output[0])

    def constant(name: str, values: np.ndarray) -> str:
        return graph.constant(name, values.astype(np.float32))

    filters = constant(f"{node.input[1]}/winograd", turned.reshape(side * side, outputs, inputs))
    x = nodes.shaped(node.input[0], "planes", -1, 1, height, width)
    x = nodes.add("Conv", [x, constant("winograd_cut", cut)], "cut", strides=[TILE, TILE], pads=[1, 1, 1, 1])
    x = nodes.shaped(x, "tiles", -1, inputs, side * side, down * across)
    x = nodes.add("Transpose", [x], "by_place", perm=[0, 2, 1, 3])
    x = nodes.add("MatMul", [filters, x], "products")
    x = nodes.add("Transpose", [x], "by_channel", perm=[0, 2, 1, 3])
    x = nodes.shaped(x, "images", -1, side * side, down, across)
    x = nodes.add("ConvTranspose", [x, constant("winograd_join", join)], "joined", strides=[TILE, TILE])
    x = nodes.shaped(x, "convolved", -1, outputs, height, width)
    if len(node.input) > 2:
        bias = constant(f"{node.input[2]}/per_channel", graph.weight(node.input[2])[:, None, None])
        nodes.add("Add", [x, bias], "biased")
    nodes.replace([node])
    return True


def winograd_growth(graph: Graph) -> int:
    """Bytes by which the transformed filters of a stage are larger than its own."""
    filters = [graph.weights[node.input[1]].dims for node in graph.model.graph.node if _winograd_tiles(graph, node)]
    return sum(4 * outputs * inputs * ((TILE + 2) ** 2 - 9) for outputs, inputs, *_ in filters)


def _winograd_tiles(graph: Graph, node: NodeProto) -> tuple[int, int] | None:
    """Tiles down and across the image of a convolution that has a faster form, or None."""
    if node.op_type != "Conv" or node.input[1] not in graph.weights:
        return None
    dims, filters = graph.dims(node.input[0]), graph.weights[node.input[1]]
    if dims is None or len(dims) != 4 or filters.data_type != TensorProto.FLOAT or not _plain(node, list(filters.dims)):
        return None
    height, width = dims[2:]
    if not isinstance(height, int) or not isinstance(width, int) or height % TILE or width % TILE:
        return None
    down, across = height // TILE, width // TILE
    return (down, across) if filters.dims[0] <= down * across else None


def _plain(node: NodeProto, dims: list[int]) -> bool:
    """Whether a convolution is 3x3, of stride 1, padded to the size of its input, without groups."""
    given = {attribute.name: list(attribute.ints) or attribute.i for attribute in node.attribute}
    wanted = {"strides": [1, 1], "dilations": [1, 1], "group": 1}
    return (
        dims[2:] == [3, 3]
        and given.get("pads") == [1, 1, 1, 1]
        and all(given.get(name, value) == value for name, value in wanted.items())
    )
