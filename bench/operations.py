"""Operations of a graph file and bytes of the weights that its products read, for given sizes.

They are counted from the graph that runs, not from the model. A multiplication and an addition are two operations;
products, convolutions and attention count, elementwise operators do not.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import onnx
import sympy

from bitdance_edge.bench.errors import BenchError
from bitdance_edge.runtime.bundle.dtypes import ONNX_NUMBERS, tensor_bytes

Shape = tuple[int, ...]
# Operators whose result has the shape of their first input: between a weight and its product, or put by calibration.
SAME_SHAPE = ("DequantizeLinear", "QuantizeLinear", "Cast", "Identity", "Relu", "Mul", "Div", "Add", "Sub", "Clip")
PRODUCTS = ("MatMul", "Gemm", "Conv", "ConvTranspose", "Attention", "MatMulNBits", "MatMulInteger")


@dataclass(frozen=True)
class Cost:
    """Of one launch."""

    operations: int
    weight_bytes: int  # of products only: a lookup reads next to nothing of its table


class GraphCosts:
    """A graph file, read once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.graph = onnx.load(path, load_external_data=False).graph
        self.weights = {tensor.name: tensor for tensor in self.graph.initializer}
        self.producers = {name: node for node in self.graph.node for name in node.output}
        values = (*self.graph.value_info, *self.graph.input, *self.graph.output)
        self.values = {value.name: value.type.tensor_type.shape for value in values}

    def cost(self, sizes: Mapping[str, int]) -> Cost:
        """Count a launch with these named dimensions.

        Raises:
            BenchError: the graph does not give the shape of a product.
        """
        shapes = _Shapes(self, sizes)
        products = [node for node in self.graph.node if node.op_type in PRODUCTS]
        operations = sum(_OPERATIONS[node.op_type](node, shapes) for node in products)
        read = {name for node in products for given in node.input for name in self._sources(given)}
        return Cost(operations, sum(_bytes(self.weights[name]) for name in read))

    def _sources(self, name: str) -> set[str]:
        """Find the weights behind a product's input: itself, or what is dequantised or reshaped on the way."""
        if name in self.weights:
            return {name}
        node = self.producers.get(name)
        if node is None or node.op_type not in (*SAME_SHAPE, "Transpose", "Reshape", "Unsqueeze", "Squeeze"):
            return set()
        found = [self._sources(given) for given in node.input if given]
        return set().union(*found) if all(found) else set()


class _Shapes:
    def __init__(self, costs: GraphCosts, sizes: Mapping[str, int]) -> None:
        self.costs, self.sizes = costs, dict(sizes)

    def __getitem__(self, name: str) -> Shape:
        costs = self.costs
        if name in costs.weights:
            return tuple(costs.weights[name].dims)
        if name in costs.values:
            return tuple(
                _evaluated(dim.dim_param, tuple(sorted(self.sizes.items()))) if dim.dim_param else dim.dim_value
                for dim in costs.values[name].dim
            )
        node = costs.producers.get(name)
        if node is not None and node.op_type in SAME_SHAPE:
            return self[node.input[0]]
        if node is not None and node.op_type == "Transpose":
            order = next((a.ints for a in node.attribute if a.name == "perm"), None)
            shape = self[node.input[0]]
            return tuple(shape[axis] for axis in (order or reversed(range(len(shape)))))
        kind = "an unknown node" if node is None else node.op_type
        raise BenchError(
            f"{costs.path} does not give the shape of {name} (from {kind}), so its operations cannot be counted; "
            "export the bundle again"
        )


@cache
def _evaluated(expression: str, sizes: tuple[tuple[str, int], ...]) -> int:
    return int(sympy.parse_expr(expression, local_dict=dict(sizes)))


def _matmul(node: onnx.NodeProto, shapes: _Shapes) -> int:
    left, right = shapes[node.input[0]], shapes[node.input[1]]
    batch = max(math.prod(left[:-2]), math.prod(right[:-2]))
    columns = right[-1] if len(right) > 1 else 1
    return 2 * batch * math.prod(left[-2:]) * columns


def _gemm(node: onnx.NodeProto, shapes: _Shapes) -> int:
    transposed = next((a.i for a in node.attribute if a.name == "transA"), 0)
    inner = shapes[node.input[0]][0 if transposed else 1]
    return 2 * math.prod(shapes[node.output[0]]) * inner


def _convolution(node: onnx.NodeProto, shapes: _Shapes) -> int:
    kernel, given = shapes[node.input[1]], shapes[node.input[0]]
    if all(size == 1 for size in kernel[2:]) and not any(
        a.name == "strides" and max(a.ints) > 1 for a in node.attribute
    ):
        # The result has as many pixels as the input, even where the graph does not give its shape.
        return 2 * given[0] * math.prod(given[2:]) * math.prod(kernel)
    return 2 * math.prod(shapes[node.output[0]]) * math.prod(kernel[1:])


def _transposed_convolution(node: onnx.NodeProto, shapes: _Shapes) -> int:
    return 2 * math.prod(shapes[node.input[0]]) * math.prod(shapes[node.input[1]][1:])


def _attention(node: onnx.NodeProto, shapes: _Shapes) -> int:
    """Count the whole cache, masked or not, because all of it is computed."""
    queries, keys = shapes[node.input[0]], shapes[node.input[1]]  # [R, H, T, d], [R, G, S, d]
    return 4 * math.prod(queries) * keys[2]


def _packed_matmul(node: onnx.NodeProto, shapes: _Shapes) -> int:
    sizes = {a.name: a.i for a in node.attribute}
    return 2 * math.prod(shapes[node.input[0]]) * sizes["N"]


_OPERATIONS: dict[str, Callable[[onnx.NodeProto, _Shapes], int]] = {
    "MatMul": _matmul,
    "MatMulInteger": _matmul,
    "Gemm": _gemm,
    "Conv": _convolution,
    "ConvTranspose": _transposed_convolution,
    "Attention": _attention,
    "MatMulNBits": _packed_matmul,
}


def _bytes(tensor: onnx.TensorProto) -> int:
    return tensor_bytes(tensor.dims, ONNX_NUMBERS[tensor.data_type])
