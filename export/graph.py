"""One stage module to one ONNX file."""

import contextlib
import functools
import io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from onnxscript.optimizer import optimize_ir
from torch.export import Dim
from torch.onnx._internal.exporter import _core
from torch.onnx._internal.exporter._registration import ONNXRegistry

from bitdance_edge.export.graph_names import name_graph
from bitdance_edge.export.operators import TRANSLATIONS
from bitdance_edge.export.signatures import TRACED, Shape, StageExport
from bitdance_edge.export.weights import HOLLOW_FROM, WeightPlacer
from bitdance_edge.runtime.bundle.specs import dim_factor, dim_size

SYMBOL = re.compile(r"\b[a-z]+\d+\b")  # of the tracer, such as s32


def export_graph(
    stage: StageExport, path: Path, opset: int, weights: WeightPlacer, properties: Mapping[str, str]
) -> None:
    """Trace a stage and write ``path``; its weights go into ``<path>.data``, or are those of linked files.

    ``properties`` become the graph's ``metadata_props``.
    """
    # Only shapes are traced: values are never read, and memory that is never written to is not taken.
    arguments = {name: torch.empty(_traced(shape), dtype=dtype) for name, (dtype, shape) in stage.inputs.items()}
    shapes = {name: _dynamic(shape, stage.least) for name, (_, shape) in stage.inputs.items()}
    hollow = {name for name, parameter in stage.module.named_parameters() if parameter.numel() > HOLLOW_FROM}

    def should_fold(node: ir.Node) -> bool | None:
        return False if any(value is not None and value.name in hollow for value in node.inputs) else None

    with _quiet():
        program = _core.export(
            stage.module.eval(),
            stage.arguments(arguments),
            registry=_translations(opset),
            opset_version=opset,
            dynamic_shapes=stage.arguments(shapes),
            input_names=list(stage.inputs),
            output_names=list(stage.outputs),
            verbose=False,
            optimize=False,
        )
        _name_dimensions(program, stage)
        optimize_ir(program.model, should_fold=should_fold)
    weights.place(program.model, path)
    ir.save(program.model, path)
    name_graph(path, properties)


@functools.cache
def _translations(opset: int) -> ONNXRegistry:
    """How PyTorch's operators are written to ONNX, made once: ``torch.onnx.export`` parses 500 functions every time."""
    registry = ONNXRegistry.from_torchlib(opset_version=opset)
    for operator, translation in TRANSLATIONS.items():
        registry.register_op(operator, translation)
    return registry


def _name_dimensions(program: torch.onnx.ONNXProgram, stage: StageExport) -> None:
    """Give every dimension its name: one derived from a multiple such as ``16*PH`` has a symbol of the tracer's own."""
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


def _dynamic(shape: Shape, least: Mapping[str, int]) -> dict[int, Any]:
    """Axis -> dimension for torch.export; a multiple such as ``16*PH`` is derived from the one it names."""
    axes = {}
    for axis, dim in enumerate(shape):
        if isinstance(dim, str):
            factor, name = dim_factor(dim)
            base = Dim(name, min=least.get(name, 1), max=65536)
            axes[axis] = factor * base if factor > 1 else base
    return axes


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's progress text and its warnings about packages that no stage uses."""
    exporter = logging.getLogger("torch.onnx")
    level = exporter.level
    exporter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        exporter.setLevel(level)
