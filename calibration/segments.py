"""A stage's graph cut into its layers, each run by itself over all launches, so that one is in memory at a time.

What a layer hands on to those behind it is kept on disk between them. The cut follows the modules: the nodes of
``backbone.layers.3`` are one segment. Weights become float32, which ONNX Runtime's CPU kernels compute in.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper
from onnx.external_data_helper import uses_external_data

from bitdance_edge.calibration.emulate import on_this_cpu
from bitdance_edge.calibration.errors import CalibrationError
from bitdance_edge.calibration.graphs import Layer, StageGraph
from bitdance_edge.calibration.sessions import CACHE_INPUT, CACHE_OUTPUT
from bitdance_edge.runtime.backends.onnxruntime import cpu_options, import_onnxruntime
from bitdance_edge.runtime.bundle.external_data import mapped_external
from bitdance_edge.runtime.bundle.module_paths import enclosing_modules
from bitdance_edge.runtime.errors import BackendError

ROWS = "R"  # as a manifest names the dimension
NUMBERED = re.compile(r"^(?:.*?\.)?\d+(?=\.|$)")  # of a module's path: up to its first number


@dataclass(frozen=True)
class Segment:
    """Nodes of a stage that run together.

    Attributes:
        name: module that they belong to.
        inputs: tensors that they read and that the stage is given, or a segment before makes.
        outputs: tensors that they make for segments behind, or as the stage's own.
        layers: that are to be quantised.
    """

    name: str
    nodes: tuple[NodeProto, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    layers: tuple[Layer, ...]

    @property
    def carried(self) -> tuple[str, ...]:
        """Outputs that segments behind read, without the cache, which only the next launch does."""
        return tuple(name for name in self.outputs if not name.startswith(CACHE_OUTPUT))

    @property
    def cache(self) -> tuple[str, ...]:
        """Inputs that hold the keys and values of the launches before."""
        return tuple(name for name in self.inputs if name.startswith(CACHE_INPUT))


def segments(graph: StageGraph) -> list[Segment]:
    """Cut a stage into its layers, in the order of its nodes."""
    parts: list[tuple[str, list[NodeProto]]] = []
    for node in graph.model.graph.node:
        name = _numbered_module(node)
        if not parts or (name and parts[-1][0] and name != parts[-1][0]):
            parts.append((name, []))
        elif name and not parts[-1][0]:
            parts[-1] = (name, parts[-1][1])
        parts[-1][1].append(node)
    return list(_linked(graph, parts))


def whole(graph: StageGraph) -> list[Segment]:
    """The stage as one segment: what cutting it is compared with."""
    return list(_linked(graph, [(graph.stage, list(graph.model.graph.node))]))


def _numbered_module(node: NodeProto) -> str:
    modules = enclosing_modules(node.metadata_props) or []
    found = next((match for module in modules if (match := NUMBERED.match(module))), None)
    return found[0] if found else ""


def _linked(graph: StageGraph, parts: Sequence[tuple[str, list[NodeProto]]]) -> Iterator[Segment]:
    constants = {tensor.name for tensor in graph.model.graph.initializer}
    given = {value.name for value in graph.model.graph.output}
    read_behind: list[set[str]] = []
    wanted = set(given)
    for _, nodes in reversed(parts):
        read_behind.append(set(wanted))
        wanted |= {name for node in nodes for name in node.input}
    for (name, nodes), behind in zip(parts, reversed(read_behind), strict=True):
        made = [output for node in nodes for output in node.output if output]
        read = dict.fromkeys(each for node in nodes for each in node.input if each)
        own, names = set(made), {node.name for node in nodes}
        yield Segment(
            name=name or graph.stage,
            nodes=tuple(nodes),
            inputs=tuple(each for each in read if each not in own and each not in constants),
            outputs=tuple(each for each in made if each in behind),
            layers=tuple(layer for layer in graph.layers if layer.node in names),
        )


class SegmentRun:
    """One segment, launch after launch; the cache is carried from each launch of an image to the next."""

    def __init__(self, graph: StageGraph, segment: Segment, fetched: Sequence[str], threads: int | None) -> None:
        """Open it.

        Args:
            fetched: inner tensors that a launch gives beside what is handed on.

        Raises:
            BackendError: ONNX Runtime cannot run it.
        """
        self.segment, self.given = segment, set(segment.inputs)
        self.fetched = [name for name in dict.fromkeys(fetched) if name not in self.given]
        model = _model_of(graph, segment, self.fetched)
        self.session, self.memory = _open(model, graph.folder, threads)
        self.cache: dict[str, np.ndarray] = {}
        whole = graph.model.graph
        self.shapes = {value.name: value for value in (*whole.value_info, *whole.input)}

    def __call__(self, values: Mapping[str, np.ndarray], first: bool) -> dict[str, np.ndarray]:
        """Run one launch and return what is handed on and fetched.

        Args:
            values: of the segment's inputs, without the cache; others are passed over.
            first: whether it is the first of an image, which has an empty cache.
        """
        feeds = {name: values[name] for name in self.segment.inputs if not name.startswith(CACHE_INPUT)}
        if first and self.segment.cache:
            rows = next(len(value) for name, value in feeds.items() if self._first_dim(name) == ROWS)
            self.cache = {name: np.zeros(self._cache_shape(name, rows), np.float32) for name in self.segment.cache}
        written = [name.replace(CACHE_INPUT, CACHE_OUTPUT, 1) for name in self.cache]
        asked = list(dict.fromkeys((*self.segment.carried, *self.fetched)))
        results = self.session.run([*asked, *written], {**feeds, **self.cache})
        self.cache = dict(zip(self.cache, results[len(asked) :], strict=True))
        return {**dict(zip(asked, results, strict=False)), **{name: feeds[name] for name in feeds}}

    def _first_dim(self, name: str) -> str:
        """The name of a tensor's first dimension, "" where it has none."""
        dims = self.shapes[name].type.tensor_type.shape.dim if name in self.shapes else ()
        return dims[0].dim_param if dims else ""

    def _cache_shape(self, name: str, rows: int) -> list[int]:
        return [dim.dim_value or rows for dim in self.shapes[name].type.tensor_type.shape.dim]


def _model_of(graph: StageGraph, segment: Segment, fetched: Sequence[str]) -> ModelProto:
    """The segment as a model, whose weights are still in the stage's files."""
    whole = graph.model.graph
    known = {value.name: value for value in (*whole.value_info, *whole.input, *whole.output)}
    read = {name for node in segment.nodes for name in node.input}
    made = ModelProto(ir_version=graph.model.ir_version)
    made.opset_import.extend(graph.model.opset_import)
    made.graph.name = segment.name
    made.graph.node.extend(segment.nodes)
    made.graph.input.extend(_value(known, name, graph.stage) for name in segment.inputs)
    outputs = dict.fromkeys((*segment.outputs, *fetched))
    made.graph.output.extend(known.get(name, ValueInfoProto(name=name)) for name in outputs)
    made.graph.initializer.extend(tensor for tensor in whole.initializer if tensor.name in read)
    return made


def _value(known: Mapping[str, ValueInfoProto], name: str, stage: str) -> ValueInfoProto:
    if name not in known:
        raise CalibrationError(f"the graph of {stage} does not say what {name} is; export the bundle again")
    return known[name]


def _open(model: ModelProto, folder: Path, threads: int | None) -> tuple[Any, list[Any]]:
    """A session over the model in float32, and the memory of its large weights, which it reads in place."""
    ort, held = import_onnxruntime(), {}
    for tensor in model.graph.initializer:
        if uses_external_data(tensor):
            held[tensor.name] = ort.OrtValue.ortvalue_from_numpy(_in_memory(model, tensor, folder))
    model = on_this_cpu(model, folder)
    options = cpu_options(threads or 0)
    # Packing would make another copy of each.
    options.add_session_config_entry("session.disable_prepacking", "1")
    options.add_external_initializers(list(held), list(held.values()))
    try:
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base class of their own
        raise BackendError(f"ONNX Runtime cannot run {model.graph.name}: {str(error).splitlines()[0]}") from error
    return session, list(held.values())


def _in_memory(model: ModelProto, tensor: TensorProto, folder: Path) -> np.ndarray:
    """The values of a weight as a CPU computes with them, and the weight described so.

    One that is only read transposed is transposed here: ONNX Runtime would keep both.
    """
    values = mapped_external(tensor.external_data, folder, helper.tensor_dtype_to_np_dtype(tensor.data_type))
    values = values.reshape(tuple(tensor.dims))
    readers = [node for node in model.graph.node if tensor.name in node.input]
    if readers and all(node.op_type == "Transpose" and values.ndim == 2 for node in readers):
        values = values.T
        for transpose in readers:
            for node in model.graph.node:
                for i, name in enumerate(node.input):
                    if name == transpose.output[0]:
                        node.input[i] = tensor.name
            model.graph.node.remove(transpose)
    if tensor.data_type == TensorProto.BFLOAT16:
        values, tensor.data_type = values.astype(np.float32), TensorProto.FLOAT
    tensor.dims[:] = values.shape
    return np.ascontiguousarray(values)
