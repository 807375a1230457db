"""One stage module to one ONNX file, and what the file says of itself."""

import ast
import contextlib
import io
import logging
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import sympy
import torch
from onnx import TensorProto, helper
from onnxscript.optimizer import optimize_ir
from torch.export import Dim

from bitdance_edge.export.errors import ExportError
from bitdance_edge.export.operators import Translations
from bitdance_edge.export.stages import TRACED, Shape, StageExport
from bitdance_edge.export.weights import HOLLOW_FROM, WeightPlacer
from bitdance_edge.runtime.bundle.module_paths import MODULE_PATH
from bitdance_edge.runtime.bundle.specs import TensorSpec, dim_factor, dim_size

ONNX_DTYPES: dict[int, str] = {
    TensorProto.FLOAT: "float32",
    TensorProto.FLOAT16: "float16",
    TensorProto.BFLOAT16: "bfloat16",
    TensorProto.INT64: "int64",
    TensorProto.UINT8: "uint8",
    TensorProto.BOOL: "bool",
}


SYMBOL = re.compile(r"\b[a-z]+\d+\b")  # of the tracer, such as s32


def export_graph(stage: StageExport, path: Path, opset: int, translations: Translations, weights: WeightPlacer) -> None:
    """Trace a stage and write ``path``; its weights stand beside it in ``<path>.data`` or in linked files."""
    # Never looked at: what is traced is their shapes, and memory that is not written to is not taken.
    arguments = {name: torch.empty(_traced(shape), dtype=dtype) for name, (dtype, shape) in stage.inputs.items()}
    shapes = {name: _dynamic(shape) for name, (_, shape) in stage.inputs.items()}
    hollow = {name for name, parameter in stage.module.named_parameters() if parameter.numel() > HOLLOW_FROM}

    def should_fold(node: ir.Node) -> bool | None:
        return False if any(value is not None and value.name in hollow for value in node.inputs) else None

    with _quiet():
        program = torch.onnx.export(
            stage.module.eval(),
            stage.arguments(arguments),
            dynamo=True,
            opset_version=opset,
            dynamic_shapes=stage.arguments(shapes),
            input_names=list(stage.inputs),
            output_names=list(stage.outputs),
            verbose=False,
            optimize=False,
            custom_translation_table=dict(translations),
        )
        assert program is not None
        _name_dimensions(program, stage)
        optimize_ir(program.model, should_fold=should_fold)
    weights.place(program.model, path)
    ir.save(program.model, path)
    _strip_traces(path)


def _name_dimensions(program: torch.onnx.ONNXProgram, stage: StageExport) -> None:
    """Give every dimension its name: what hangs on a multiple such as ``16*PH`` still has the tracer's own symbol."""
    assert program.exported_program is not None
    signature = set(program.exported_program.graph_signature.user_inputs)
    inputs = [node for node in program.exported_program.graph.nodes if node.op == "placeholder"]
    names: dict[str, str] = {}
    for node, (_, shape) in zip(
        [node for node in inputs if node.name in signature], stage.inputs.values(), strict=True
    ):
        for dim, traced in zip(shape, node.meta["val"].shape, strict=True):
            if isinstance(dim, str) and isinstance(traced, torch.SymInt):
                factor, name = dim_factor(dim)
                names[str(traced.node.expr / factor)] = name
    for node in (program.model.graph, *program.model.graph):
        for value in (*node.inputs, *node.outputs):
            if value is not None and value.shape is not None:
                for axis, dim in enumerate(value.shape):
                    if isinstance(dim, ir.SymbolicDim) and dim.value is not None:
                        value.shape[axis] = SYMBOL.sub(lambda found: names.get(found[0], found[0]), dim.value)


def _traced(shape: Shape) -> list[int]:
    return [dim if isinstance(dim, int) else dim_size(dim, TRACED) for dim in shape]


def _dynamic(shape: Shape) -> dict[int, Any]:
    """Axis -> dimension for torch.export; a multiple such as ``16*PH`` is derived from the one it names."""
    axes = {}
    for axis, dim in enumerate(shape):
        if isinstance(dim, str):
            factor, name = dim_factor(dim)
            base = Dim(name, min=1, max=65536)
            axes[axis] = factor * base if factor > 1 else base
    return axes


def _strip_traces(path: Path) -> None:
    """Keep each node's module path, which errors and profiles name, and drop the source lines of this machine."""
    graph = onnx.load(path, load_external_data=False)
    for node in graph.graph.node:
        scopes = [entry.value for entry in node.metadata_props if entry.key == MODULE_PATH]
        del node.metadata_props[:]
        for value in scopes:
            # Paths are told as the model knows them: the stage, which holds the whole model, stands for its root.
            root, *modules, operation = ast.literal_eval(value)
            inner = [module.removeprefix("model.") for module in modules if module != "model"]
            node.metadata_props.add(key=MODULE_PATH, value=repr([root, *inner, operation]))
    for value in (*graph.graph.value_info, *graph.graph.input, *graph.graph.output, *graph.graph.initializer):
        del value.metadata_props[:]
    del graph.graph.metadata_props[:]
    del graph.metadata_props[:]
    onnx.save(graph, path)


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
        shape = tuple(_dimension(dim.dim_param) if dim.dim_param else dim.dim_value for dim in tensor.shape.dim)
        return TensorSpec(name=value.name, dtype=ONNX_DTYPES[tensor.elem_type], shape=shape)

    return tuple(map(spec, graph.input)), tuple(map(spec, graph.output))


def _dimension(expression: str) -> str:
    """A name, or a multiple of one as ``16*PH``: what a bundle may say of a dimension."""
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
