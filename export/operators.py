"""Operators that are written to ONNX in another way than the exporter's."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from onnxscript import opset18

op: Any = opset18  # its type hints are for decorated functions, not for traced ones


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


TRANSLATIONS: Mapping[Callable, Callable] = {
    torch.ops.aten.group_norm.default: group_norm,
    torch.ops.aten.linear.default: linear,
}
