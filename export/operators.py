"""Operators that are written to ONNX otherwise than the exporter would."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnxscript import opset18

op: Any = opset18  # its type hints are those of decorated functions, not of traced ones

Translations = Mapping[Callable, Callable]

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


def group_norm(
    x: Any,
    groups: int,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Any:
    """GroupNorm of a traced ``[B, C, H, W]`` as InstanceNormalization over its groups (https://onnx.ai/onnx/operators).

    GroupNormalization is defined by E[x²] - E[x]², and ONNX Runtime computes it so: in float32 that loses digits where
    a group's mean is far from zero, and it takes 2.5 times as long.
    """
    grouped = op.Reshape(x, op.Constant(value_ints=[0, groups, -1]))
    ones = op.CastLike(op.Constant(value_floats=[1.0] * groups), x)
    zeros = op.CastLike(op.Constant(value_floats=[0.0] * groups), x)
    normalized = op.Reshape(op.InstanceNormalization(grouped, ones, zeros, epsilon=eps), op.Shape(x))
    axes = op.Constant(value_ints=[1, 2])
    if weight is not None:
        normalized = op.Mul(normalized, op.Unsqueeze(weight, axes))
    return normalized if bias is None else op.Add(normalized, op.Unsqueeze(bias, axes))


def linear(x: Any, weight: Any, bias: Any = None) -> Any:
    """A linear layer as MatMul and Add, also where the exporter would take Gemm.

    Runtimes fuse the two where that is faster; a Gemm with a bias in float stays unfused once its inputs are quantised.
    """
    product = op.MatMul(x, op.Transpose(weight, perm=[1, 0]))
    return product if bias is None else op.Add(product, bias)


def pointwise_linear(x: Any, weight: Any, bias: Any = None) -> Any:
    """A linear layer as a 1x1 convolution over an image of as many pixels as ``x`` has rows, channels last.

    ONNX Runtime turns the two transposes into the reordering of its blocked convolution, which is faster than its
    matrix product where rows are few (docs/speed.md).
    """
    outputs, inputs = weight.shape
    rank = len(x.shape)
    if outputs % CHANNEL_BLOCK or inputs % CHANNEL_BLOCK or not 2 <= rank <= 4:
        return linear(x, weight, bias)
    axes = op.Constant(value_ints=list(range(4 - rank)))
    pixels = x if rank == 4 else op.Unsqueeze(x, axes)
    kernel = op.Reshape(weight, op.Constant(value_ints=[outputs, inputs, 1, 1]))
    mixed = op.Conv(op.Transpose(pixels, perm=[0, 3, 1, 2]), kernel, *([] if bias is None else [bias]))
    rows = op.Transpose(mixed, perm=[0, 2, 3, 1])
    return rows if rank == 4 else op.Squeeze(rows, axes)


def winograd_convolution(
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
) -> Any:
    """A 3x3 convolution with a quarter of the multiplications, where images are large against the filters.

    Filters are transformed when the graph is loaded and then take four times their memory, so that this is done where
    the transformed filters are smaller than the transformed image. Tiles are cut out and transformed by a convolution
    of one channel, and put together by its transpose: both run at the speed of matrix products.
    """
    (images, inputs, height, width), (outputs, _, *kernel) = x.shape, weight.shape
    plain = list(kernel) == [3, 3] and list(stride) == list(padding) == list(dilation) == [1, 1] and groups == 1
    fixed = all(isinstance(size, int) and size % TILE == 0 for size in (height, width))
    if not plain or not fixed or outputs > height * width // TILE**2:
        pads = [*padding, *padding]
        extra = [] if bias is None else [bias]
        return op.Conv(x, weight, *extra, strides=list(stride), pads=pads, dilations=list(dilation), group=groups)
    side = TILE + 2
    down, across = height // TILE, width // TILE
    forward, filters, backward = (np.array(table) for table in (WINOGRAD_INPUT, WINOGRAD_FILTER, WINOGRAD_OUTPUT))
    cut = np.einsum("ia,jb->ijab", forward, forward).reshape(side * side, 1, side, side)
    join = np.einsum("ai,bj->ijab", backward, backward).reshape(side * side, 1, TILE, TILE)
    turn = np.einsum("ia,jb->abij", filters, filters).reshape(9, side * side)

    planes = _shaped(x, (inputs * images, 1, height, width))
    tiles = op.Conv(planes, _constant(cut), strides=[TILE, TILE], pads=[1, 1, 1, 1])
    tiles = _shaped(tiles, (images, inputs, side * side, down * across))
    turned = op.MatMul(op.Reshape(weight, op.Constant(value_ints=[-1, 9])), _constant(turn))
    turned = op.Transpose(op.Reshape(turned, op.Constant(value_ints=[outputs, inputs, -1])), perm=[2, 0, 1])
    products = op.Transpose(op.MatMul(turned, op.Transpose(tiles, perm=[0, 2, 1, 3])), perm=[0, 2, 1, 3])
    products = _shaped(products, (outputs * images, side * side, down, across))
    joined = op.ConvTranspose(products, _constant(join), strides=[TILE, TILE])
    image = _shaped(joined, (images, outputs, height, width))
    return image if bias is None else op.Add(image, op.Unsqueeze(bias, op.Constant(value_ints=[1, 2])))


def _shaped(x: Any, shape: Sequence[Any]) -> Any:
    """Reshape to a first dimension that may be symbolic; the graph keeps its name, from which memory is planned."""
    reshaped = op.Reshape(x, op.Constant(value_ints=[-1, *shape[1:]]))
    reshaped.shape = ir.Shape(shape)
    return reshaped


def _constant(values: np.ndarray) -> Any:
    return op.Constant(value=ir.tensor(values.astype(np.float32)))


TRANSLATIONS: Translations = {
    torch.ops.aten.group_norm.default: group_norm,
    torch.ops.aten.linear.default: linear,
}
# Stage -> what is written otherwise for a CPU. Its decoder alone leaves all matrix products as they can be quantised.
CPU_DECODER: Mapping[str, Translations] = {"decoder": {torch.ops.aten.conv2d.default: winograd_convolution}}
CPU_TRANSLATIONS: Mapping[str, Translations] = {
    "backbone": {torch.ops.aten.linear.default: pointwise_linear},
    "head": {torch.ops.aten.linear.default: pointwise_linear},
    **CPU_DECODER,
}
