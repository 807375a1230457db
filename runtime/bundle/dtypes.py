"""Element types of tensors: what a manifest calls them, what ONNX numbers them, and the bits that one element takes.

https://github.com/onnx/onnx/blob/main/onnx/onnx.proto (TensorProto.DataType)
"""

import math
from collections.abc import Iterable

BITS = {
    "float32": 32,
    "float16": 16,
    "bfloat16": 16,
    "float8e4m3fn": 8,
    "float4e2m1": 4,
    "int64": 64,
    "int32": 32,
    "int8": 8,
    "uint8": 8,
    "int4": 4,
    "uint4": 4,
    "bool": 8,
}
ONNX_NUMBERS = {
    1: "float32",
    2: "uint8",
    3: "int8",
    6: "int32",
    7: "int64",
    9: "bool",
    10: "float16",
    16: "bfloat16",
    17: "float8e4m3fn",
    21: "uint4",
    22: "int4",
    23: "float4e2m1",
}
TENSOR_DTYPES = ("float32", "float16", "bfloat16", "int64", "uint8", "bool")  # of a stage's inputs and outputs


def tensor_bytes(shape: Iterable[int], dtype: str) -> int:
    """Bytes of a tensor; two 4-bit elements share a byte."""
    return (math.prod(shape) * BITS[dtype] + 7) // 8
