"""The forms in which ONNX Runtime computes quantised convolutions on a CPU.

A convolution between Q/DQ pairs becomes one node (QLinearConv) only with unsigned activations; TensorRT takes signed
ones alone, so that bundles have those. 128 more in every code and in the zero point is the same number.
https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html

Of that node there are two kernels with the same result: one for weights with a zero point of 0, which reads the image
in place, and matrix products over a copy of it, which alone use AMX. Weights whose codes and zero point are all one
less are the same numbers, and take the second.
"""

import numpy as np
from onnx import NodeProto, TensorProto

from bitdance_edge.engines.rewriting import Graph, Nodes, attribute_of
from bitdance_edge.engines.targets.cpu_timing import products_are_faster
from bitdance_edge.runtime.backends.processor import has_amx

MIDDLE = 128  # of unsigned codes: what is added to signed ones
ZERO = "unsigned_zero"  # the constant of it
SHIFT = -1  # of the codes of weights, for the kernel of matrix products
PIXEL_SHUFFLE = [0, 3, 4, 1, 5, 2]  # [B, dy, dx, C, H, W] to [B, C, H, dy, W, dx]


def int8_convolution(graph: Graph, node: NodeProto) -> bool:
    """Rewrite a convolution with INT8 weights so that it is computed in INT8, or in float32 where it cannot be.

    It cannot be where its result is not rounded: its weights would be unpacked at every launch.
    """
    unpacking = _unpacking(graph, node)
    if unpacking is None:
        return False
    pairs = [_pair_before(graph, node), _pair_behind(graph, node)]
    if all(pairs):
        for codes, back in pairs:
            codes.input[2] = back.input[2] = graph.constant(ZERO, np.array(MIDDLE, np.uint8))
            if codes.output[0] in graph.shapes:
                graph.shapes[codes.output[0]].type.tensor_type.elem_type = TensorProto.UINT8
        image, filters = graph.dims(pairs[0][0].input[0]), graph.weights[unpacking.input[0]].dims
        alone = graph.readers[unpacking.output[0]] == [node]
        if alone and has_amx() and products_are_faster(node, image, filters):
            _shift(graph, unpacking)
        _shuffle_codes(graph, pairs[1][1])
    else:
        _unpack(graph, node, unpacking)
    return True


def unpacked_growth(graph: Graph) -> int:
    """Bytes by which the weights of convolutions grow that are computed in float32 for want of a rounded result."""
    growth = 0
    for node in graph.model.graph.node:
        unpacking = _unpacking(graph, node)
        if unpacking is not None and not (_pair_before(graph, node) and _pair_behind(graph, node)):
            growth += 3 * int(np.prod(graph.weights[unpacking.input[0]].dims))
    return growth


def _shift(graph: Graph, unpacking: NodeProto) -> None:
    """Give a weight the codes of another zero point, where it has room for them."""
    name = unpacking.input[0]
    codes = graph.weight(name)
    if int(codes.min()) + SHIFT >= np.iinfo(np.int8).min:
        zeros = np.full(len(codes), SHIFT, np.int8)
        unpacking.input[0] = graph.constant(f"{name}/shifted", (codes + SHIFT).astype(np.int8))
        unpacking.input.append(graph.constant(f"{name}/zeros", zeros))


def _shuffle_codes(graph: Graph, back: NodeProto) -> None:
    """Move the pixel shuffle behind a convolution in front of its DQ: a quarter of the bytes, and channels last.

    The result of the convolution has channels last, and a pixel's channels stay together.
    """
    chain = [back]
    for operator in ("Reshape", "Transpose"):
        reader = graph.only_reader(chain[-1].output[0])
        if reader is None or reader.op_type != operator:
            return
        chain.append(reader)
    dims = graph.dims(chain[-1].input[0])
    if (
        attribute_of(chain[-1], "perm") != PIXEL_SHUFFLE
        or dims is None
        or not all(isinstance(size, int) for size in dims[1:4])
    ):
        return
    down, across, channels = (int(size) for size in dims[1:4])
    nodes = Nodes(graph, chain[-1].output[0])
    x = nodes.add("Transpose", [back.input[0]], "channels_last", perm=[0, 2, 3, 1])
    x = nodes.shaped(x, "parts", 0, 0, 0, down, across, channels)
    x = nodes.add("Transpose", [x], "shuffled", perm=[0, 1, 3, 2, 4, 5])
    x = nodes.shaped(x, "rows", 0, 0, 0, -1, channels)  # between two transposes that would become one, and slow
    x = nodes.add("Transpose", [x], "channels_first", perm=[0, 4, 1, 2, 3])
    x = nodes.add("DequantizeLinear", [x, *back.input[1:]], "pixels")
    nodes.shaped(x, "apart", 0, 0, 0, 0, -1, across)
    nodes.replace(chain)


def _unpacking(graph: Graph, node: NodeProto) -> NodeProto | None:
    """The node that unpacks the INT8 weight of a convolution, with a scale for each output; or None."""
    unpacking = graph.producers.get(node.input[1]) if node.op_type == "Conv" else None
    if unpacking is None or unpacking.op_type != "DequantizeLinear" or len(unpacking.input) != 2:
        return None
    codes, scales = (graph.weights.get(name) for name in unpacking.input)
    if codes is None or scales is None:
        return None
    return unpacking if (codes.data_type, scales.data_type) == (TensorProto.INT8, TensorProto.FLOAT) else None


def _pair_before(graph: Graph, node: NodeProto) -> list[NodeProto]:
    """The Q and the DQ that round the input of a node alone; none where there are none."""
    back = graph.producers.get(node.input[0])
    codes = graph.producers.get(back.input[0]) if back is not None else None
    return _pair(graph, codes, back)


def _pair_behind(graph: Graph, node: NodeProto) -> list[NodeProto]:
    """The Q and the DQ that round the result of a node; none where there are none."""
    codes = graph.only_reader(node.output[0])
    behind = graph.readers.get(codes.output[0], []) if codes is not None else []
    return _pair(graph, codes, behind[0] if len(behind) == 1 else None)


def _pair(graph: Graph, codes: NodeProto | None, back: NodeProto | None) -> list[NodeProto]:
    """Both nodes, if they round to signed codes that nothing else reads."""
    if codes is None or back is None:
        return []
    alone = graph.readers.get(codes.output[0], []) == [back]
    zeros = {node.input[2] for node in (codes, back) if len(node.input) == 3}
    signed = all(name in graph.weights and _is_signed(graph, name) for name in zeros)
    named = (codes.op_type, back.op_type) == ("QuantizeLinear", "DequantizeLinear")
    return [codes, back] if named and alone and signed and len(zeros) == 1 else []


def _is_signed(graph: Graph, zero: str) -> bool:
    """Whether codes are signed, or were until a layer before that shares them was rewritten."""
    return zero == ZERO or graph.weights[zero].data_type == TensorProto.INT8


def _unpack(graph: Graph, node: NodeProto, unpacking: NodeProto) -> None:
    """Give a convolution its weight in float32."""
    codes, scales = (graph.weight(name) for name in unpacking.input)
    values = codes.astype(np.float32) * scales.reshape(-1, *[1] * (codes.ndim - 1))
    node.input[1] = graph.constant(f"{unpacking.output[0]}/float32", values)
    if graph.readers[unpacking.output[0]] == [node]:
        graph.model.graph.node.remove(unpacking)
