"""One stage module to one ONNX file, and what the file says of itself."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import onnx
import sympy
import torch
from onnx import TensorProto, helper
from torch.export import Dim

from bitdance_edge.export.stages import TRACED, StageExport
from bitdance_edge.runtime.bundle import MODULE_PATH, TensorSpec

ONNX_DTYPES: dict[int, str] = {
    TensorProto.FLOAT: "float32",
    TensorProto.FLOAT16: "float16",
    TensorProto.BFLOAT16: "bfloat16",
    TensorProto.INT64: "int64",
    TensorProto.UINT8: "uint8",
    TensorProto.BOOL: "bool",
}


def export_graph(stage: StageExport, path: Path, opset: int) -> None:
    """Trace a stage and write ``path`` with its weights beside it in ``<path>.data``."""
    sizes = {name: Dim(name, min=1, max=65536) for name in TRACED}
    arguments, dynamic = [], []
    for dtype, shape in stage.inputs.values():
        arguments.append(torch.zeros([TRACED[dim] if isinstance(dim, str) else dim for dim in shape], dtype=dtype))
        dynamic.append({axis: sizes[dim] for axis, dim in enumerate(shape) if isinstance(dim, str)} or None)
    with _quiet():
        program = torch.onnx.export(
            stage.module.eval(),
            tuple(arguments),
            dynamo=True,
            opset_version=opset,
            dynamic_shapes=_grouped(stage, dynamic),
            input_names=list(stage.inputs),
            output_names=list(stage.outputs),
            verbose=False,
        )
        assert program is not None
        program.save(path, external_data=True)
    _strip_traces(path)


def _strip_traces(path: Path) -> None:
    """Keep each node's module path, which errors and profiles name, and drop the source lines of this machine."""
    graph = onnx.load(path, load_external_data=False)
    for node in graph.graph.node:
        kept = [entry for entry in node.metadata_props if entry.key == MODULE_PATH]
        del node.metadata_props[:]
        node.metadata_props.extend(kept)
    for value in (*graph.graph.value_info, *graph.graph.input, *graph.graph.output, *graph.graph.initializer):
        del value.metadata_props[:]
    del graph.graph.metadata_props[:]
    del graph.metadata_props[:]
    onnx.save(graph, path)


def _grouped(stage: StageExport, dynamic: list) -> tuple:
    """The cache is one variadic argument of the backbone; torch.export wants its shapes as one nested tuple."""
    single = sum(not name.startswith("past_key_values.") for name in stage.inputs)
    grouped = tuple(dynamic[:single])
    return (*grouped, tuple(dynamic[single:])) if len(dynamic) > single else grouped


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's progress text and its remarks on packages that no stage uses off the terminal."""
    exporter = logging.getLogger("torch.onnx")
    level = exporter.level
    exporter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        exporter.setLevel(level)


def tensor_specs(path: Path) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Inputs and outputs of a graph file, as the bundle records them."""
    graph = onnx.load(path, load_external_data=False).graph

    def spec(value: onnx.ValueInfoProto) -> TensorSpec:
        tensor = value.type.tensor_type
        shape = tuple(dim.dim_param or dim.dim_value for dim in tensor.shape.dim)
        return TensorSpec(name=value.name, dtype=ONNX_DTYPES[tensor.elem_type], shape=shape)

    return tuple(map(spec, graph.input)), tuple(map(spec, graph.output))


def activation_bytes(path: Path, sizes: dict[str, int]) -> int:
    """Most bytes of intermediate tensors alive at once, if the graph runs node by node with these sizes.

    A figure for planning: a runtime that fuses operators needs less, one that works in tiles or copies needs more.
    """
    graph = onnx.load(path, load_external_data=False).graph
    produced = {name for node in graph.node for name in node.output}
    held = {value.name: _bytes(value, sizes) for value in graph.value_info if value.name in produced}
    last_use = {name: i for i, node in enumerate(graph.node) for name in node.input}
    alive = peak = 0
    for i, node in enumerate(graph.node):
        alive += sum(held.get(name, 0) for name in node.output)
        peak = max(peak, alive)
        alive -= sum(held.get(name, 0) for name in {*node.input, *node.output} if last_use.get(name, i) == i)
    return peak


def _bytes(value: onnx.ValueInfoProto, sizes: dict[str, int]) -> int:
    tensor = value.type.tensor_type
    elements = 1
    for dim in tensor.shape.dim:
        elements *= _size(dim.dim_param, sizes) if dim.dim_param else dim.dim_value
    return elements * helper.tensor_dtype_to_np_dtype(tensor.elem_type).itemsize


def _size(expression: str, sizes: dict[str, int]) -> int:
    """A named dimension, or what the exporter derived from some, as a number."""
    return int(sympy.parse_expr(expression, local_dict=sizes))
