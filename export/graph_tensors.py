"""Inputs and outputs of a graph file, and the memory that its intermediate tensors take."""

from pathlib import Path

import onnx
import sympy

from bitdance_edge.export.errors import ExportError
from bitdance_edge.export.signatures import TRACED
from bitdance_edge.runtime.bundle.dtypes import ONNX_NUMBERS, tensor_bytes
from bitdance_edge.runtime.bundle.specs import TensorSpec


def tensor_specs(path: Path) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Inputs and outputs of a graph file, as the bundle records them."""
    graph = onnx.load(path, load_external_data=False).graph

    def spec(value: onnx.ValueInfoProto) -> TensorSpec:
        tensor = value.type.tensor_type
        shape = tuple(_dimension(dim.dim_param) if dim.dim_param else dim.dim_value for dim in tensor.shape.dim)
        return TensorSpec(name=value.name, dtype=ONNX_NUMBERS[tensor.elem_type], shape=shape)

    return tuple(map(spec, graph.input)), tuple(map(spec, graph.output))


def _dimension(expression: str) -> str:
    """A name, or a multiple of one such as ``16*PH``: the two kinds that a bundle can hold."""
    factor, rest = sympy.parse_expr(expression, local_dict={name: sympy.Symbol(name) for name in TRACED}).as_coeff_Mul()
    if not rest.is_Symbol:
        raise ExportError(f"the exporter derived dimension {expression}; a bundle holds names and their multiples only")
    return str(rest) if factor == 1 else f"{factor}*{rest}"


def activation_bytes(path: Path, sizes: dict[str, int]) -> int:
    """Most bytes of intermediate tensors alive at once, if the graph runs node by node with these sizes.

    A figure for planning: a runtime that fuses operators needs less, one that works in tiles or copies needs more.
    """
    graph = onnx.load(path, load_external_data=False).graph
    produced = {name for node in graph.node for name in node.output}
    held = {value.name: _value_bytes(value, sizes) for value in graph.value_info if value.name in produced}
    last_use = {name: i for i, node in enumerate(graph.node) for name in node.input}
    alive = peak = 0
    for i, node in enumerate(graph.node):
        alive += sum(held.get(name, 0) for name in node.output)
        peak = max(peak, alive)
        alive -= sum(held.get(name, 0) for name in {*node.input, *node.output} if last_use.get(name, i) == i)
    return peak


def _value_bytes(value: onnx.ValueInfoProto, sizes: dict[str, int]) -> int:
    tensor = value.type.tensor_type
    shape = [dimension_size(dim.dim_param, sizes) if dim.dim_param else dim.dim_value for dim in tensor.shape.dim]
    return tensor_bytes(shape, ONNX_NUMBERS[tensor.elem_type])


def dimension_size(expression: str, sizes: dict[str, int]) -> int:
    """The size of a dimension, given by its name or by an expression that the exporter derived from names."""
    return int(sympy.parse_expr(expression, local_dict=sizes))
