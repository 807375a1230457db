"""Forms of the head and the backbone that ONNX Runtime runs on CUDA in fewer launches (docs/gpu.md).

At small batches a launch costs more than what it computes. The operators of ``com.microsoft`` are ONNX Runtime's own:
https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
"""

from collections.abc import Sequence

import numpy as np
from onnx import NodeProto, TensorProto, helper

from bitdance_edge.engines.rewriting import Graph, attribute_of, make_node
from bitdance_edge.runtime.bundle.stage_names import StageName

STAGES = (StageName.HEAD, StageName.BACKBONE)
OWN_OPERATORS = "com.microsoft"
# GatedRMSNorm's x * rsqrt(mean(x^2) + epsilon) * scale is x where the square root of epsilon is the scale, and much
# larger than x. Its arithmetic is in float32; the scale has to be a number of the graph's type.
SCALES: dict[int, float] = {TensorProto.FLOAT: 2.0**60, TensorProto.BFLOAT16: 2.0**60, TensorProto.FLOAT16: 2.0**15}
PACKED = [2, 0, 3, 1, 4]  # of [B, P, 3, H, d] to [3, B, H, P, d]


def apply_fewer_launches(graph: Graph) -> int:
    """Rewrite what has a form of fewer launches; returns the number of places."""
    forms = (gated_add, gated_product, packed_attention)
    changed = sum(form(graph, node) for form in forms for node in list(graph.model.graph.node))
    graph.drop_unread()
    if changed and all(each.domain != OWN_OPERATORS for each in graph.model.opset_import):
        graph.model.opset_import.append(helper.make_opsetid(OWN_OPERATORS, 1))
    return changed


def gated_add(graph: Graph, node: NodeProto) -> bool:
    """Rewrite ``x + y * gate`` as one launch: adaLN's scale and shift, its gate and the residual, the sampler's steps.

    GatedAdd rounds the product as the two operators do.
    """
    if node.op_type != "Add":
        return False
    for x, product in ((node.input[0], node.input[1]), (node.input[1], node.input[0])):
        mul = _only_for(graph, product, node, "Mul")
        if mul is None:
            continue
        for y, gate in (mul.input, reversed(mul.input)):
            shapes = _gated_shapes(graph, x, y, gate)
            if shapes is not None:
                graph.replace([node, mul], _gated_nodes(graph, (x, y, gate), shapes, node.output[0]))
                return True
    return False


def _gated_shapes(graph: Graph, x: str, y: str, gate: str) -> tuple[list[int], list[int], list[int]] | None:
    """What x and y, the gate and the sum are reshaped to, with 0 for a dimension that stays; None where they differ.

    The gate is of their shape, so that every element is a row, or a single number, so that all are one row.
    """
    dims, gates = graph.dims(x), graph.dims(gate)
    if not dims or dims != graph.dims(y) or gates is None or any(name in graph.weights for name in (x, y, gate)):
        return None
    back = [0 if isinstance(size, str) else size for size in dims]
    if gates == dims:
        return [*back, 1], [*back, 1], back
    if gates in ([], [1]) and not any(isinstance(size, str) for size in dims[1:]):
        return [1, -1], [1, 1], [-1, *dims[1:]]  # type: ignore[list-item]
    return None


def _gated_nodes(
    graph: Graph, inputs: Sequence[str], shapes: tuple[list[int], list[int], list[int]], result: str
) -> list[NodeProto]:
    def reshaped(name: str, shape: list[int], output: str) -> NodeProto:
        held = graph.constant(f"gated_shape_{'x'.join(map(str, shape))}", np.array(shape))
        return make_node("Reshape", [name, held], output)

    rows, gates, back = shapes
    columns = [f"{result}/{part}" for part in ("added", "scaled", "gate")]
    nodes = [
        reshaped(name, shape, column) for name, shape, column in zip(inputs, (rows, rows, gates), columns, strict=True)
    ]
    gated = make_node("GatedAdd", columns, f"{result}/gated", domain=OWN_OPERATORS)
    return [*nodes, gated, reshaped(gated.output[0], back, result)]


def gated_product(graph: Graph, node: NodeProto) -> bool:
    """Rewrite ``silu(gate) * up`` as one launch, by a gated norm that does not normalise (``SCALES``)."""
    if node.op_type != "Mul":
        return False
    for silu_at, up_at in ((0, 1), (1, 0)):
        silu = _only_for(graph, node.input[silu_at], node, "Mul")
        if silu is None:
            continue
        for gate, curve in (silu.input, reversed(silu.input)):
            sigmoid = _only_for(graph, curve, silu, "Sigmoid")
            if sigmoid is None or sigmoid.input[0] != gate:
                continue
            up, kind = node.input[up_at], graph.element_type(gate)
            dims = graph.dims(up)
            if kind not in SCALES or not dims or dims != graph.dims(gate) or not isinstance(dims[-1], int):
                return False
            scale = graph.constant(f"gated_{dims[-1]}", _filled(dims[-1], SCALES[kind], kind))
            attributes = {"activation": "silu", "epsilon": SCALES[kind] ** 2}
            gated = make_node("GatedRMSNorm", [up, scale, gate], node.output[0], domain=OWN_OPERATORS, **attributes)
            graph.replace([node, sigmoid, silu], [gated])
            return True
    return False


def packed_attention(graph: Graph, node: NodeProto) -> bool:
    """Rewrite attention over a product ``[B, P, 3, H, d]`` of queries, keys and values without a transpose.

    Attention takes ``[B, P, H*d]`` as well as ``[B, H, P, d]``, and has a fused kernel for it.
    """
    if node.op_type != "Attention" or len(node.input) != 3:
        return False
    parts = [_unpacked(graph, name) for name in node.input]
    sources = {transpose.input[0] for transpose, _ in parts if transpose is not None}
    dims, back = graph.dims(node.input[0]), graph.only_reader(node.output[0])
    if len(sources) != 1 or [at for _, at in parts] != [0, 1, 2] or dims is None:
        return False
    if back is None or back.op_type != "Transpose" or attribute_of(back, "perm") != [0, 2, 1, 3]:
        return False
    _, heads, tokens, width = dims
    if not isinstance(heads, int) or not isinstance(tokens, int) or not isinstance(width, int):
        return False
    result = back.output[0]
    packed = graph.constant(f"packed_{tokens}", np.array([0, tokens, 3 * heads * width]))
    apart = graph.constant(f"heads_{tokens}", np.array([0, tokens, heads, width]))
    names = [f"{result}/{part}" for part in ("queries", "keys", "values")]
    attended = NodeProto()
    attended.CopyFrom(node)
    attended.ClearField("input")
    attended.input.extend(names)
    attended.output[0] = attended.name = f"{result}/attended"
    attended.attribute.extend(helper.make_attribute(name, heads) for name in ("q_num_heads", "kv_num_heads"))
    split = helper.make_node("Split", [f"{result}/packed"], names, name=f"{result}/split", axis=2, num_outputs=3)
    nodes = [
        make_node("Reshape", [sources.pop(), packed], f"{result}/packed"),
        split,
        attended,
        make_node("Reshape", [attended.output[0], apart], result),
    ]
    graph.replace([back, node], nodes)
    return True


def _unpacked(graph: Graph, name: str) -> tuple[NodeProto | None, int]:
    """The transpose that an input of attention is a part of, and which part; None where it has another form."""
    squeeze = graph.producers.get(name)
    cut = graph.producers.get(squeeze.input[0]) if squeeze is not None and squeeze.op_type == "Squeeze" else None
    if cut is None or cut.op_type != "Slice" or any(each not in graph.weights for each in cut.input[1:]):
        return None, -1
    start, end, axes = (graph.weight(each).tolist() for each in cut.input[1:4])
    transpose = graph.producers.get(cut.input[0])
    if (
        transpose is None
        or transpose.op_type != "Transpose"
        or attribute_of(transpose, "perm") != PACKED
        or axes != [0]
    ):
        return None, -1
    return (transpose, start[0]) if end[0] == start[0] + 1 else (None, -1)


def _only_for(graph: Graph, name: str, reader: NodeProto, operator: str) -> NodeProto | None:
    """The node of this kind that makes a tensor, if ``reader`` alone reads it."""
    node = graph.producers.get(name)
    if node is None or node.op_type != operator or name in graph.outputs or graph.readers[name] != [reader]:
        return None
    return node


def _filled(count: int, value: float, kind: int) -> np.ndarray:
    return np.full(count, value, helper.tensor_dtype_to_np_dtype(kind))
