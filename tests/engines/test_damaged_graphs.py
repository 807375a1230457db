"""A graph that was altered is refused in one line before it is rewritten, calibrated or measured."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from bitdance_edge.calibration.graphs import read_skeleton
from bitdance_edge.engines import graph as facts
from bitdance_edge.engines.rewriting import Graph
from bitdance_edge.runtime import BundleError
from bitdance_edge.runtime.bundle.module_paths import MODULE_PATH, enclosing_modules


def model() -> ModelProto:
    value = helper.make_tensor_value_info
    nodes = [helper.make_node("Add", ["x", "w"], ["a"]), helper.make_node("Relu", ["a"], ["y"])]
    weights = [numpy_helper.from_array(np.ones((2, 3), np.float32), "w")]
    inputs, outputs = value("x", TensorProto.FLOAT, [2, 3]), value("y", TensorProto.FLOAT, [2, 3])
    return helper.make_model(helper.make_graph(nodes, "g", [inputs], [outputs], weights))


def outside(made: ModelProto, **entries: str) -> None:
    """Have the constant in a file beside the graph."""
    (weight,) = made.graph.initializer
    weight.data_location, weight.raw_data = TensorProto.EXTERNAL, b""
    for key, value in {"location": "w.data", **entries}.items():
        weight.external_data.add(key=key, value=value)


def reshaped(made: ModelProto, *dims: int) -> None:
    made.graph.initializer[0].dims[:] = dims


def renamed(made: ModelProto, node: int, name: str) -> None:
    made.graph.node[node].input[0] = name


CHANGES: dict[str, tuple[Callable[[ModelProto], object], str]] = {
    "cyclic": (lambda made: renamed(made, 0, "y"), "Add takes 'y', which nothing before it makes"),
    "of itself": (lambda made: renamed(made, 1, "y"), "Relu takes 'y'"),
    "no weight": (lambda made: made.graph.initializer.pop(), "Add takes 'w'"),
    "no output": (lambda made: made.graph.node.pop(), "no node makes its output 'y'"),
    "no opset": (lambda made: made.ClearField("opset_import"), "it names no opset"),
    "negative": (lambda made: reshaped(made, -1, 3), r"'w' has the shape \[-1, 3\]"),
    "huge": (lambda made: reshaped(made, 2**40, 2**20), "'w' has 24 bytes, and its shape says"),
    "too few": (lambda made: outside(made, length="20"), "'w' has 20 bytes, and its shape says 24"),
    "too many": (lambda made: outside(made), "'w' has 64 bytes, and its shape says 24"),
    "beyond": (lambda made: outside(made, offset="60", length="24"), "ends before byte 84"),
    "nowhere": (lambda made: outside(made, location="none"), "none is missing"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_an_altered_graph_is_one_error(change: str, tmp_path: Path) -> None:
    path, made = tmp_path / "g.onnx", model()
    (tmp_path / "w.data").write_bytes(bytes(64))
    path.write_bytes(made.SerializeToString())
    assert Graph.read(path).weight("w").sum() == 6
    alter, message = CHANGES[change]
    alter(made)
    path.write_bytes(made.SerializeToString())
    for read in (Graph.read, facts.read_graph, read_skeleton):
        with pytest.raises(BundleError, match=message) as refused:
            read(path)
        assert "\n" not in str(refused.value)


def test_layers_of_one_name_are_one_error(tmp_path: Path) -> None:
    made = model()
    for node in made.graph.node:
        node.op_type, node.name = "MatMul", "same\n"
    (tmp_path / "g.onnx").write_bytes(made.SerializeToString())
    with pytest.raises(BundleError, match=r"has several nodes of the name 'same"):
        read_skeleton(tmp_path / "g.onnx")


@pytest.mark.parametrize("content", [b"\x08", b"<!doctype html>", b"\x3a\xff\xff\xff\xff\x07", bytes(3000)])
def test_what_is_no_graph_is_one_error(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "g.onnx").write_bytes(content)
    with pytest.raises(BundleError, match=r"g\.onnx is "):
        Graph.read(tmp_path / "g.onnx")


@pytest.mark.parametrize("value", ["[__import__('os')]", "(" * 5000, "{1: 2}", "[1, 2, 3]", "7", "['a'", "'" * 20_000])
def test_names_of_modules_that_are_none_are_not_said(value: str) -> None:
    entry = onnx.StringStringEntryProto(key=MODULE_PATH, value=value)
    assert enclosing_modules([entry]) is None
