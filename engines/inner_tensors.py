"""A stage's graph on ONNX Runtime with some of its inner tensors as outputs; weights stay in their files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, ValueInfoProto

from bitdance_edge.engines.graph import read_graph
from bitdance_edge.engines.targets.onnx_session import open_model
from bitdance_edge.runtime.bundle.linked_files import follow_links

LAYERS = ("MatMul", "Gemm", "Conv")  # nodes whose outputs are looked at: what they make is a floating-point number


def session_with(graph: Path, names: Sequence[str], precision: str = "fp32") -> Any:
    """Open a session of a graph that also outputs the tensors of these names.

    Raises:
        BuildFailure: ONNX Runtime refuses the graph.
        OutOfMemoryError: it does not fit into memory.
    """
    model = onnx.load(graph, load_external_data=False)
    given = {value.name for value in (*model.graph.output, *model.graph.input)}
    inferred = {value.name: value for value in model.graph.value_info}
    model.graph.output.extend(
        inferred.get(name, ValueInfoProto(name=name)) for name in dict.fromkeys(names) if name not in given
    )
    return _opened(model, graph, precision)


def last_layer(graph: Path) -> str | None:
    """Return the output of the graph's last layer with weights: what pixels and bits are made of."""
    nodes = onnx.load(graph, load_external_data=False).graph.node
    return next((node.output[0] for node in reversed(nodes) if node.op_type in LAYERS), None)


def first_not_finite(graph: Path, precision: str, inputs: Mapping[str, np.ndarray]) -> str | None:
    """Return the first module, in the order of the graph, that makes NaN or an infinite value of these inputs."""
    innermost: dict[str, str] = {}  # tensor -> module: one that ends another makes the same tensor
    for module, tensor in read_graph(graph).results.items():
        innermost[tensor] = max(module, innermost.get(tensor, ""), key=len)
    made = session_with(graph, list(innermost), precision).run(list(innermost), dict(inputs))
    return next(
        (module for module, values in zip(innermost.values(), made, strict=True) if not is_finite(values)), None
    )


def is_finite(values: np.ndarray) -> bool:
    """Return whether all values, of any shape and type, are finite."""
    return bool(np.isfinite(values).all()) if np.issubdtype(values.dtype, np.floating) else True


def _opened(model: ModelProto, graph: Path, precision: str) -> Any:
    folder = follow_links((tensor.external_data for tensor in model.graph.initializer), graph.parent)
    return open_model(model.SerializeToString(), folder, precision, graph.name)
