"""bfloat16 graphs for a machine without bfloat16 kernels: the same graph and the same weights, in float32.

ONNX Runtime's CPU backend runs no bfloat16 operator, so a bfloat16 export is checked through this. Widening is exact;
what is not checked is the rounding of bfloat16 arithmetic itself.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import AttributeProto, GraphProto, TensorProto, ValueInfoProto, external_data_helper, helper, numpy_helper

from bitdance_edge.runtime.bundle.external_data import read_external


class WidenedStage:
    """A stage in float32 whose external weights are inputs, given to it at every run.

    One serialised model holds 2 GiB at most, and ONNX Runtime copies constants; inputs it reads in place.
    """

    def __init__(self, path: Path, options: ort.SessionOptions) -> None:
        model = onnx.load(path, load_external_data=False)
        self.weights: dict[str, np.ndarray] = {}
        kept: list[TensorProto] = []
        for tensor in model.graph.initializer:
            if external_data_helper.uses_external_data(tensor):
                self.weights[tensor.name] = _widened_values(tensor, path.parent)
                model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
            else:
                kept.append(tensor)
        del model.graph.initializer[:]
        model.graph.initializer.extend(kept)
        _widen(model.graph)
        self.session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def run(self, outputs: Sequence[str] | None, feeds: Mapping[str, np.ndarray]) -> Sequence[Any]:
        """The named outputs, or all, as of an ``InferenceSession``."""
        return self.session.run(outputs, {**feeds, **self.weights})


def _widened_values(tensor: TensorProto, folder: Path) -> np.ndarray:
    stored = TensorProto(data_type=tensor.data_type, dims=tensor.dims)
    stored.raw_data = read_external(tensor.external_data, folder)
    values = numpy_helper.to_array(stored)
    return values.astype(np.float32) if tensor.data_type == TensorProto.BFLOAT16 else values


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
