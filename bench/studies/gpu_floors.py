"""What a machine can do at best, and what a stage therefore takes at least: from its bytes and its operations."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass

import onnx
import sympy
from onnx import GraphProto, NodeProto

from bitdance_edge.runtime.bundle.manifest import Bundle


@dataclass(frozen=True)
class Machine:
    """Measured in this run: bytes moved a second by a copy (read and written), operations a second of a product."""

    name: str
    copy_bytes: float
    matrix_operations: float
    matrix_type: str


def measure_machine(device: str) -> Machine:
    """A large copy and a large matrix product in PyTorch; the best of several."""
    import torch

    on_gpu = device == "cuda"
    dtype = torch.float16 if on_gpu else torch.float32
    elements, side = (2**29, 8192) if on_gpu else (2**24, 1024)
    source = torch.ones(elements, dtype=torch.float16, device=device)
    target = torch.empty_like(source)
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    product = torch.empty_like(left)

    def best(work) -> float:
        seconds = []
        for _ in range(6):
            if on_gpu:
                torch.cuda.synchronize()
            started = time.perf_counter()
            for _ in range(5):
                work()
            if on_gpu:
                torch.cuda.synchronize()
            seconds.append((time.perf_counter() - started) / 5)
        return min(seconds)

    copied = 2 * source.nbytes / best(lambda: target.copy_(source))
    multiplied = 2 * side**3 / best(lambda: torch.matmul(left, right, out=product))
    name = torch.cuda.get_device_name() if on_gpu else "CPU"
    return Machine(name, copied, multiplied, str(dtype).removeprefix("torch."))


@dataclass(frozen=True)
class StageCost:
    """Of one launch: bytes that have to be read or written once, and operations of its matrix products."""

    bytes: int
    operations: int

    def floor_ms(self, machine: Machine) -> float:
        return 1000 * max(self.bytes / machine.copy_bytes, self.operations / machine.matrix_operations)


def stage_cost(bundle: Bundle, stage: str, sizes: Mapping[str, int]) -> StageCost:
    """Weights, inputs and outputs once (of the cache what is read: all of it), intermediate tensors not at all."""
    spec = bundle.stage(stage)
    moved = spec.weight_bytes
    for tensor in (*spec.inputs, *spec.outputs):
        if not tensor.name.startswith("present."):  # written for a few slots only
            moved += tensor.bytes(sizes)
    graph = onnx.load(bundle.folder / spec.graph.path, load_external_data=False).graph
    return StageCost(moved, matrix_operations(graph, sizes))


def matrix_operations(graph: GraphProto, sizes: Mapping[str, int]) -> int:
    """Multiplications and additions of all matrix products, convolutions and attentions."""
    shapes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.value_info, *graph.input, *graph.output):
        dims = value.type.tensor_type.shape.dim
        shapes[value.name] = [_size(dim.dim_param, sizes) if dim.dim_param else dim.dim_value for dim in dims]
    return sum(_operations(node, shapes) for node in graph.node)


def _operations(node: NodeProto, shapes: Mapping[str, list[int]]) -> int:
    if node.op_type in ("MatMul", "Gemm"):
        return 2 * math.prod(shapes[node.output[0]]) * shapes[node.input[0]][-1]
    if node.op_type == "Conv":
        return 2 * math.prod(shapes[node.output[0]]) * math.prod(shapes[node.input[1]][1:])
    if node.op_type == "Attention":  # queries by keys, then weights by values
        return 4 * math.prod(shapes[node.input[0]]) * shapes[node.input[1]][-2]
    return 0


def _size(expression: str, sizes: Mapping[str, int]) -> int:
    return int(sympy.parse_expr(expression, local_dict=dict(sizes)))
