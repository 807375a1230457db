"""Changing an ONNX graph node by node, with its weights where they are until they are wanted."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, external_data_helper, helper, numpy_helper

from bitdance_edge.runtime.bundle.external_data import read_external
from bitdance_edge.runtime.bundle.graph_file import read_graph

INLINE_UP_TO = 1024  # bytes; larger weights are kept beside the graph


@dataclass
class Graph:
    """A model being rewritten: nodes are replaced one by one, and what a replacement adds goes in its place.

    Args:
        folder: of the graph's file, where its weights are.
    """

    model: ModelProto
    folder: Path
    readers: dict[str, list[NodeProto]] = field(init=False)
    producers: dict[str, NodeProto] = field(init=False)
    weights: dict[str, TensorProto] = field(init=False)
    shapes: dict[str, ValueInfoProto] = field(init=False)

    def __post_init__(self) -> None:
        graph = self.model.graph
        self.readers, self.producers = {}, {}
        for node in graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
            self.producers.update(dict.fromkeys(node.output, node))
        self.weights = {tensor.name: tensor for tensor in graph.initializer}
        self.shapes = {value.name: value for value in (*graph.value_info, *graph.input, *graph.output)}
        self._added: list[TensorProto] = []

    @classmethod
    def read(cls, path: Path) -> "Graph":
        """Read a graph; raises BundleError where it is damaged."""
        return cls(read_graph(path, onnx.load), path.parent)

    @property
    def outputs(self) -> set[str]:
        return {value.name for value in self.model.graph.output}

    def only_reader(self, name: str) -> NodeProto | None:
        """The node that reads a value, if nothing else does; None also for a result of the graph."""
        readers = self.readers.get(name, [])
        return readers[0] if len(readers) == 1 and name not in self.outputs else None

    def weight(self, name: str) -> np.ndarray:
        """The values of a constant."""
        tensor = self.weights[name]
        if external_data_helper.uses_external_data(tensor):
            loaded = TensorProto()
            loaded.CopyFrom(tensor)
            loaded.raw_data = read_external(tensor.external_data, self.folder)
            loaded.ClearField("data_location")
            loaded.ClearField("external_data")
            tensor = loaded
        return numpy_helper.to_array(tensor)

    def dims(self, name: str) -> list[int | str] | None:
        """The dimensions of a tensor, names for those that change; None where the graph does not say."""
        value = self.shapes.get(name)
        if value is None or not value.type.tensor_type.HasField("shape"):
            return None
        return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]

    def element_type(self, name: str) -> int:
        """Of a tensor, as ONNX numbers it; 0 where the graph does not say."""
        if name in self.weights:
            return self.weights[name].data_type
        value = self.shapes.get(name)
        return value.type.tensor_type.elem_type if value is not None else 0

    def constant(self, name: str, values: np.ndarray) -> str:
        """Add a constant; one of the same name is there once."""
        if name not in self.weights:
            tensor = numpy_helper.from_array(np.ascontiguousarray(values), name)
            self.weights[name] = tensor
            self._added.append(tensor)
        return name

    def replace(self, replaced: Iterable[NodeProto], nodes: Sequence[NodeProto]) -> None:
        """Put ``nodes`` where the last of ``replaced`` stands; they keep the first one's module path, and its name."""
        old = list(replaced)
        result = nodes[-1].output[0]  # what the nodes that ``make_node`` made are named after
        for node in nodes:
            node.metadata_props.extend(old[0].metadata_props)
            node.name = f"{old[0].name}{node.name.removeprefix(result)}"
        kept = self.model.graph.node
        last = max(i for i, node in enumerate(kept) if any(node is each or node.name == each.name for each in old))
        at = last - len(old) + 1
        for node in old:
            kept.remove(node)
        for offset, node in enumerate(nodes):
            kept.insert(at + offset, node)

    def name_values(self) -> None:
        """Name each value inside the graph after the node that makes it.

        ONNX Runtime names the nodes that it makes of others after their values, and profiles show those.
        """
        graph = self.model.graph
        taken = {value.name for value in (*graph.input, *graph.output)} | self.weights.keys()
        names = {}
        for node in graph.node:
            for i, value in enumerate(node.output):
                name = f"{node.name}:{i}" if i else node.name
                if value and node.name and value not in taken and name not in taken:
                    names[value] = name
        for node in graph.node:
            node.input[:] = [names.get(value, value) for value in node.input]
            node.output[:] = [names.get(value, value) for value in node.output]
        for described in graph.value_info:
            described.name = names.get(described.name, described.name)

    def drop_unread(self) -> None:
        """Remove nodes whose results nobody reads, and those that only they read."""
        kept = self.model.graph.node
        read = self.outputs
        for node in reversed(list(kept)):  # in topological order: readers come after what they read
            if read.isdisjoint(node.output):
                kept.remove(node)
            else:
                read.update(node.input)

    def save(self, path: Path) -> None:
        """Write the graph with the weights that it still reads, large ones in ``<path>.data``."""
        graph = self.model.graph
        read = {name for node in graph.node for name in node.input} | self.outputs
        tensors = [tensor for tensor in (*graph.initializer, *self._added) if tensor.name in read]
        del graph.initializer[:]
        graph.initializer.extend(tensors)
        data = path.with_name(f"{path.name}.data")
        with data.open("wb") as file:
            for tensor in graph.initializer:
                self._place(tensor, file, data.name)
        if not data.stat().st_size:
            data.unlink()
        onnx.save(self.model, path)

    def _place(self, tensor: TensorProto, file: Any, location: str) -> None:
        """Move a tensor's values to the open file of weights, one tensor at a time in memory."""
        if external_data_helper.uses_external_data(tensor):
            values = read_external(tensor.external_data, self.folder)
        elif tensor.HasField("raw_data") and len(tensor.raw_data) > INLINE_UP_TO:
            values = tensor.raw_data
        else:
            return
        tensor.ClearField("raw_data")
        file.write(bytes(-file.tell() % 64))  # aligned, to be mapped
        tensor.data_location = TensorProto.EXTERNAL
        del tensor.external_data[:]
        for key, value in (("location", location), ("offset", file.tell()), ("length", len(values))):
            tensor.external_data.add(key=key, value=str(value))
        file.write(values)


class Nodes:
    """Nodes that take the place of others in a graph: the last one computes ``result``, and all are named after it."""

    def __init__(self, graph: Graph, result: str) -> None:
        self.graph, self.result = graph, result
        self._nodes: list[NodeProto] = []

    def add(self, operator: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        """Add a node; returns the name of what it computes."""
        self._nodes.append(make_node(operator, inputs, f"{self.result}/{name}", **attributes))
        return self._nodes[-1].output[0]

    def shaped(self, x: str, name: str, *sizes: int) -> str:
        """Add a Reshape; one size may be -1, and 0 is the size that ``x`` has there."""
        shape = self.graph.constant(f"shape_{'x'.join(map(str, sizes))}", np.array(sizes))
        return self.add("Reshape", [x, shape], name)

    def replace(self, replaced: Iterable[NodeProto]) -> None:
        """Put them where ``replaced`` are."""
        self._nodes[-1].output[0] = self._nodes[-1].name = self.result
        self.graph.replace(replaced, self._nodes)


def attribute_of(node: NodeProto, name: str, default: Any = None) -> Any:
    """The value of a node's attribute, or the default where it is not given."""
    return next((helper.get_attribute_value(each) for each in node.attribute if each.name == name), default)


def make_node(operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> NodeProto:
    """A node named after its output."""
    return helper.make_node(operator, list(inputs), [output], name=output, **attributes)
