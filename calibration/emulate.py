"""Graphs in formats that no CPU runs, rewritten to compute the same numbers: what their loss is measured with.

ONNX Runtime's CPU kernels know neither E2M1 nor bfloat16. E2M1 codes become int8 of twice their values, and the factor
of their scales is halved: exact. bfloat16 becomes float32, which is exact for constants and omits the rounding of
bfloat16 arithmetic.
"""

from collections.abc import Iterable
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
from onnx import AttributeProto, ModelProto, TensorProto, ValueInfoProto, numpy_helper
from onnx.external_data_helper import uses_external_data

from bitdance_edge.runtime.bundle.external_data import read_external

FOREIGN = frozenset({TensorProto.FLOAT4E2M1, TensorProto.BFLOAT16})


def needs_emulation(model: ModelProto) -> bool:
    """Whether a graph has constants or tensors in a format that no CPU runs."""
    graph = model.graph
    constants = (tensor.data_type for tensor in graph.initializer)
    tensors = (*graph.input, *graph.output, *graph.value_info)
    return not FOREIGN.isdisjoint(constants) or any(value.type.tensor_type.elem_type in FOREIGN for value in tensors)


def on_this_cpu(model: ModelProto, folder: Path) -> ModelProto:
    """Return a graph as ONNX Runtime's CPU kernels run it: itself, or a copy with its constants in memory.

    Args:
        folder: of the files that hold its constants.
    """
    if not needs_emulation(model):
        return model
    made = ModelProto()
    made.CopyFrom(model)
    halved = {
        node.input[1]
        for node in made.graph.node
        if node.op_type == "DequantizeLinear"
        and _type(made, node.input[0]) == TensorProto.FLOAT8E4M3FN
        and _feeds_e2m1(made, node.output[0])
    }
    for tensor in made.graph.initializer:
        if tensor.data_type in FOREIGN or tensor.name in halved:
            tensor.CopyFrom(numpy_helper.from_array(_widened(tensor, folder, tensor.name in halved), tensor.name))
    _widen_types((*made.graph.input, *made.graph.output, *made.graph.value_info))
    for node in made.graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.TENSOR and attribute.t.data_type == TensorProto.BFLOAT16:
                attribute.t.CopyFrom(numpy_helper.from_array(_widened(attribute.t, folder, False), attribute.t.name))
            elif attribute.name in ("to", "dtype", "output_dtype") and attribute.i == TensorProto.BFLOAT16:
                attribute.i = TensorProto.FLOAT
    return made


def _type(model: ModelProto, name: str) -> int:
    return next((tensor.data_type for tensor in model.graph.initializer if tensor.name == name), 0)


def _feeds_e2m1(model: ModelProto, scales: str) -> bool:
    readers = [node for node in model.graph.node if scales in node.input]
    return any(_type(model, node.input[0]) == TensorProto.FLOAT4E2M1 for node in readers)


def _widened(tensor: TensorProto, folder: Path, halved: bool) -> np.ndarray:
    values = constant(tensor, folder)
    if tensor.data_type == TensorProto.FLOAT4E2M1:
        return (2 * values.astype(np.float32)).astype(np.int8)
    values = values.astype(np.float32) if values.dtype == ml_dtypes.bfloat16 else values
    return (values / 2).astype(values.dtype) if halved else values


def constant(tensor: TensorProto, folder: Path) -> np.ndarray:
    """The values of a constant, in the graph or in a file of ``folder``."""
    if not uses_external_data(tensor):
        return numpy_helper.to_array(tensor)
    stored = TensorProto(data_type=tensor.data_type, dims=tensor.dims)
    stored.raw_data = read_external(tensor.external_data, folder)
    return numpy_helper.to_array(stored)


def _widen_types(values: Iterable[ValueInfoProto]) -> None:
    for value in values:
        if value.type.tensor_type.elem_type == TensorProto.BFLOAT16:
            value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
