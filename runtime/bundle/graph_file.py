"""An ONNX file that somebody else may have written: read, or refused in one line, before it is changed or measured.

ONNX Runtime checks what it opens; what rewrites a graph does not. Knows messages of ONNX by their fields, and imports
no library: the caller has it.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from bitdance_edge.runtime.bundle.dtypes import ONNX_NUMBERS, tensor_bytes
from bitdance_edge.runtime.bundle.external_data import external_place
from bitdance_edge.runtime.errors import BundleError

EXTERNAL = 1  # TensorProto.DataLocation


def read_graph(path: Path, load: Callable[..., Any]) -> Any:
    """Read a graph without its weights.

    Args:
        load: ``onnx.load``.

    Raises:
        BundleError: it is no ONNX file, its nodes are not in order, or a constant has not the bytes of its shape.
    """
    try:
        model = load(path, load_external_data=False)
    except Exception as error:  # of a damaged file protobuf raises any
        raise BundleError(f"{path} is no ONNX file ({str(error)[:200]}); copy or export it again") from None
    if not any(item.domain in ("", "ai.onnx") for item in model.opset_import):
        raise BundleError(f"{path} is damaged: it names no opset; copy or export it again")
    for complaint in (*_unordered(model.graph), *_odd_constants(model.graph, path.parent)):
        raise BundleError(f"{path} is damaged: {complaint}; copy or export it again")
    return model


def _unordered(graph: Any) -> Iterable[str]:
    """What nodes, or the graph's outputs, take that nothing before them makes."""
    made = {"", *(value.name for value in graph.input), *(tensor.name for tensor in graph.initializer)}
    made.update(tensor.values.name for tensor in graph.sparse_initializer)
    for node in graph.node:
        for name in node.input:
            if name not in made:
                yield f"{node.op_type} takes {name[:80]!r}, which nothing before it makes"
        made.update(node.output)
    for value in graph.output:
        if value.name not in made:
            yield f"no node makes its output {value.name[:80]!r}"


def _odd_constants(graph: Any, folder: Path) -> Iterable[str]:
    """Constants with other bytes than their types and shapes say."""
    for tensor in graph.initializer:
        if tensor.data_type not in ONNX_NUMBERS:
            continue
        if min(tensor.dims, default=0) < 0:
            yield f"{tensor.name[:80]!r} has the shape {list(tensor.dims)[:8]}"
            continue
        wanted = tensor_bytes(tensor.dims, ONNX_NUMBERS[tensor.data_type])
        if tensor.data_location == EXTERNAL:
            found = external_place(tensor.external_data, folder)[2]
        else:
            found = len(tensor.raw_data) or wanted  # or it is in a field of its type
        if found != wanted:
            yield f"{tensor.name[:80]!r} has {found:,} bytes, and its shape says {wanted:,}"
