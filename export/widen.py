"""bfloat16 graphs for a machine without bfloat16 kernels: the same graph and the same weights, in float32.

ONNX Runtime's CPU backend runs no bfloat16 operator, so a bfloat16 export is checked through this. Widening is exact;
what is not checked is the rounding of bfloat16 arithmetic itself.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, TensorProto, ValueInfoProto, external_data_helper, numpy_helper


def widened(path: Path) -> bytes:
    """The model at ``path`` (and its external weights) with every bfloat16 turned into float32, serialised.

    Raises:
        ValueError: over 2 GiB in float32, which one serialised model cannot hold.
    """
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        if external_data_helper.uses_external_data(tensor):
            _read_external(tensor, path.parent)
    _widen(model.graph)
    if model.ByteSize() >= 2**31:
        raise ValueError(f"{path} holds {model.ByteSize()} bytes in float32, more than one serialised model can")
    return model.SerializeToString()


def _read_external(tensor: TensorProto, folder: Path) -> None:
    """Take the values in; ``onnx`` itself refuses files that are hard links, as those of a checkpoint may be."""
    info = external_data_helper.ExternalDataInfo(tensor)
    with (folder / info.location).open("rb") as file:
        file.seek(info.offset or 0)
        tensor.raw_data = file.read(info.length)
    tensor.ClearField("data_location")
    tensor.ClearField("external_data")


def _widen(graph: GraphProto) -> None:
    for tensor in graph.initializer:
        _widen_tensor(tensor)
    _widen_values((*graph.input, *graph.output, *graph.value_info))
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.TENSOR:
                _widen_tensor(attribute.t)
            elif attribute.name in ("to", "dtype") and attribute.i == TensorProto.BFLOAT16:
                attribute.i = TensorProto.FLOAT


def _widen_tensor(tensor: TensorProto) -> None:
    if tensor.data_type == TensorProto.BFLOAT16:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))


def _widen_values(values: Iterable[ValueInfoProto]) -> None:
    for value in values:
        if value.type.tensor_type.elem_type == TensorProto.BFLOAT16:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
