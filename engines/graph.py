"""What an ONNX file says that an engine build needs to know: its element types, and the module of each node."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import GraphProto, TensorProto

from bitdance_edge.runtime.bundle import graph_file
from bitdance_edge.runtime.bundle.module_paths import enclosing_modules

# Element types that ask something of the GPU; float32 only where it is multiplied (see ``_types``).
TYPES: dict[int, str] = {
    TensorProto.FLOAT16: "fp16",
    TensorProto.BFLOAT16: "bf16",
    TensorProto.FLOAT8E4M3FN: "fp8",
    TensorProto.FLOAT4E2M1: "fp4",
    TensorProto.INT8: "int8",
    TensorProto.INT4: "int4",
    TensorProto.UINT4: "int4",
}
# Of DequantizeLinear: what it gives is multiplied, in the type of its scale.
MULTIPLIED = ("MatMul", "Gemm", "Conv", "DequantizeLinear")


@dataclass(frozen=True)
class GraphFacts:
    opset: int
    types: frozenset[str]  # of TYPES, and "fp32" where matrices are multiplied in it
    modules: dict[str, str]  # node -> module of the PyTorch model, "" for what belongs to the stage itself
    operators: dict[str, str]  # node -> operator
    results: dict[str, str]  # module -> the tensor made by its last node, in the order of the graph

    @property
    def label(self) -> str:
        """The narrowest and the widest element type, for tables: ``int8+fp16``."""
        order = ("fp4", "int4", "fp8", "int8", "fp16", "bf16", "fp32")
        found = [kind for kind in order if kind in self.types]
        quantized = [kind for kind in found if kind in ("fp4", "int4", "fp8", "int8")]
        return "+".join([*quantized, *(kind for kind in found if kind not in quantized)]) or "fp32"


def read_graph(path: Path) -> GraphFacts:
    """Read the graph without its weights; raises BundleError where it is damaged."""
    model = graph_file.read_graph(path, onnx.load)
    return GraphFacts(
        opset=next(item.version for item in model.opset_import if item.domain in ("", "ai.onnx")),
        types=frozenset(_types(model.graph)),
        modules=_modules(model.graph),
        operators={node.name: node.op_type for node in model.graph.node},
        results=_results(model.graph),
    )


def _types(graph: GraphProto) -> Iterator[str]:
    held = {tensor.name: tensor.data_type for tensor in graph.initializer}
    inferred = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.input)}
    for data_type in (*held.values(), *inferred.values()):
        if data_type in TYPES:
            yield TYPES[data_type]
    known = {**inferred, **held}
    for node in graph.node:
        if node.op_type in MULTIPLIED and TensorProto.FLOAT in {known.get(name) for name in node.input}:
            yield "fp32"


def _modules(graph: GraphProto) -> dict[str, str]:
    """The module path of each node; a node without one is taken to belong where its first known input was made."""
    made_in: dict[str, str] = {}
    modules = {}
    for node in graph.node:
        enclosing = enclosing_modules(node.metadata_props)
        if enclosing is None:
            module = next((made_in[name] for name in node.input if name in made_in), "")
        else:
            module = enclosing[-1] if enclosing else ""
        modules[node.name] = module
        made_in.update(dict.fromkeys(node.output, module))
    return modules


def _results(graph: GraphProto) -> dict[str, str]:
    last: dict[str, tuple[int, str]] = {}
    for i, node in enumerate(graph.node):
        for module in enclosing_modules(node.metadata_props) or ():
            last[module] = (i, node.output[0])
    return {module: tensor for module, (_, tensor) in sorted(last.items(), key=lambda item: item[1][0])}
