"""The forms that a CPU runs fastest compute what the portable graph does, and only layers that gain are rewritten."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

from bitdance_edge.engines.rewriting import Graph
from bitdance_edge.engines.targets.cpu_forms import apply_fast_forms

Dims = Sequence[int | str]
RNG = np.random.default_rng(0)


def random(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def written(folder: Path, nodes: list[NodeProto], x: Dims, weights: dict[str, np.ndarray]) -> Path:
    """A graph of these nodes from ``x`` to ``y``, with the shapes of what is between, its weights in a file beside."""
    for number, node in enumerate(nodes):
        node.name = f"node_{number}"
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(x))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.ascontiguousarray(values), name) for name, values in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=11)
    path = folder / "graph.onnx"
    onnx.save(onnx.shape_inference.infer_shapes(model), path, save_as_external_data=True, location="graph.onnx.data")
    return path


def rewritten(path: Path, stage: str, x: np.ndarray) -> tuple[list[str], float]:
    """Operators of the rewritten graph, and its largest error relative to the largest value of the original."""
    graph, changed = Graph.read(path), path.with_name("changed.onnx")
    count = apply_fast_forms(graph, stage)
    graph.save(changed)
    before, after = onnx.load(path).graph.node, onnx.load(changed).graph.node
    used = [node.op_type for node in after]
    assert bool(count) == (used != [node.op_type for node in before])
    assert len({node.name for node in after}) == len(after)
    assert {node.name.split("/")[0] for node in after} <= {node.name for node in before}  # still the model's names
    onnx.checker.check_model(changed)
    want, got = (
        np.asarray(ort.InferenceSession(str(file), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0])
        for file in (path, changed)
    )
    assert want.shape == got.shape
    return used, float(np.abs(got - want).max() / np.abs(want).max())


def linear(bias: bool, transposed: bool = False) -> list[NodeProto]:
    """A product of x with w, as it is exported: of a linked checkpoint its weight is transposed in the graph."""
    nodes = [helper.make_node("Transpose", ["w"], ["wt"], perm=[1, 0])] if transposed else []
    nodes.append(helper.make_node("MatMul", ["x", "wt" if transposed else "w"], ["p" if bias else "y"]))
    return [*nodes, helper.make_node("Add", ["p", "b"], ["y"])] if bias else nodes


@pytest.mark.parametrize("stage", ["head", "backbone"])
@pytest.mark.parametrize("rows", [(6,), (3, 5), (2, 3, 5)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("transposed", [True, False])
def test_a_product_is_a_convolution(
    tmp_path: Path, stage: str, rows: tuple[int, ...], bias: bool, transposed: bool
) -> None:
    weights = {"w": random(48, 64) if transposed else random(64, 48), "b": random(48)}
    names: Dims = ["R", *rows[1:], 64]  # any number of rows
    used, error = rewritten(written(tmp_path, linear(bias, transposed), names, weights), stage, random(*rows, 64))
    assert used.count("Conv") == 1
    assert "MatMul" not in used
    assert "Add" not in used  # the convolution adds the bias
    assert error < 2e-6


def no_change(nodes: list[NodeProto], x: Dims, weights: dict[str, np.ndarray]) -> Callable[[Path, str], None]:
    def check(folder: Path, stage: str) -> None:
        sizes = [size if isinstance(size, int) else 32 for size in x]
        used, error = rewritten(written(folder, nodes, x, weights), stage, random(*sizes))
        assert used == [node.op_type for node in nodes]
        assert error == 0

    return check


def convolution(**attributes: Any) -> list[NodeProto]:
    given: dict[str, Any] = {"pads": [1, 1, 1, 1], **attributes}
    return [helper.make_node("Conv", ["x", "w"], ["y"], **given)]


@pytest.mark.parametrize(
    ("stage", "check"),
    [
        ("head", no_change(linear(True), [6, 20], {"w": random(20, 48), "b": random(48)})),  # widths not of 16
        ("head", no_change(linear(True), [6, 64], {"w": random(64, 40), "b": random(40)})),
        ("head", no_change(linear(False), [6, 1, 1, 3, 64], {"w": random(64, 48)})),  # five dimensions
        ("tokens", no_change(linear(True), [6, 64], {"w": random(64, 48), "b": random(48)})),  # of another stage
        ("decoder", no_change(linear(False), [6, 64], {"w": random(64, 48)})),
        ("decoder", no_change(convolution(strides=[2, 2]), [2, 32, 32, 32], {"w": random(32, 32, 3, 3)})),
        ("decoder", no_change(convolution(pads=[0, 0, 0, 0]), [2, 32, 32, 32], {"w": random(32, 32, 3, 3)})),
        ("decoder", no_change(convolution(group=2), [2, 32, 32, 32], {"w": random(32, 16, 3, 3)})),
        ("decoder", no_change(convolution(pads=[0, 0, 0, 0]), [2, 32, 32, 32], {"w": random(32, 32, 1, 1)})),
        # Transformed filters would be larger than the image.
        ("decoder", no_change(convolution(), [2, 32, 32, 32], {"w": random(96, 32, 3, 3)})),
        ("decoder", no_change(convolution(), [2, 32, 30, 32], {"w": random(32, 32, 3, 3)})),  # not of whole tiles
        ("decoder", no_change(convolution(), [2, 32, "16*PH", "16*PW"], {"w": random(32, 32, 3, 3)})),
    ],
)
def test_other_layers_stay(tmp_path: Path, stage: str, check: Callable[[Path, str], None]) -> None:
    check(tmp_path, stage)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("inputs", "outputs", "size"), [(32, 32, (32, 32)), (16, 48, (48, 32))])
def test_a_convolution_of_a_large_image_needs_a_quarter_of_the_products(
    tmp_path: Path, inputs: int, outputs: int, size: tuple[int, int], bias: bool
) -> None:
    node = helper.make_node("Conv", ["x", "w", *(["b"] if bias else [])], ["y"], pads=[1, 1, 1, 1])
    weights = {"w": random(outputs, inputs, 3, 3), "b": random(outputs)}
    used, error = rewritten(
        written(tmp_path, [node], ["B", inputs, *size], weights), "decoder", random(2, inputs, *size)
    )
    assert used.count("ConvTranspose") == 1
    assert used.count("Conv") == 1  # the cutting of tiles
    assert used.count("Add") == bias
    assert error < 2e-5


def group_norm(operands: str) -> list[NodeProto]:
    """As exported: without scale and shift, with constant ones, or with computed ones for each image."""
    nodes = [
        helper.make_node("Reshape", ["x", "grouped"], ["groups"]),
        helper.make_node("InstanceNormalization", ["groups", "ones", "zeros"], ["normal"], epsilon=1e-6),
        helper.make_node("Reshape", ["normal", "whole"], ["y" if operands == "none" else "image"]),
    ]
    if operands == "computed":
        nodes.insert(0, helper.make_node("GlobalMaxPool", ["x"], ["scale"]))
        nodes.insert(1, helper.make_node("Sin", ["scale"], ["shift"]))
    if operands != "none":
        nodes.append(helper.make_node("Mul", ["scale", "image"], ["scaled"]))
        nodes.append(helper.make_node("Add", ["scaled", "shift"], ["y"]))
    return nodes


def norm_weights(operands: str) -> dict[str, np.ndarray]:
    constant = {"scale": random(32, 1, 1), "shift": random(32, 1, 1)} if operands == "constant" else {}
    shapes = {"grouped": np.array([0, 8, -1]), "whole": np.array([0, 32, -1, 10])}
    return {**shapes, "ones": np.ones(8, np.float32), "zeros": np.zeros(8, np.float32), **constant}


@pytest.mark.parametrize("operands", ["none", "constant", "computed"])
@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("size", [[6, 10], ["H", 10]])
def test_a_group_norm_is_one_pass_behind_its_statistics(
    tmp_path: Path, operands: str, images: int, size: list[int | str]
) -> None:
    x = random(images, 32, 6, 10) * 3 + 40 * random(images, 32, 1, 1)  # means far from zero
    path = written(tmp_path, group_norm(operands), ["B", 32, *size], norm_weights(operands))
    used, error = rewritten(path, "decoder", x)
    assert used.count("BatchNormalization") == 2  # the first one centres what is squared
    assert not {"InstanceNormalization", "Add"} & set(used)
    assert error < 5e-6


@pytest.mark.parametrize(("name", "values"), [("scale", random(32, 6, 1)), ("ones", random(8))])
def test_other_norms_stay(tmp_path: Path, name: str, values: np.ndarray) -> None:
    weights = {**norm_weights("constant"), name: values}
    graph = Graph.read(written(tmp_path, group_norm("constant"), ["B", 32, 6, 10], weights))
    assert apply_fast_forms(graph, "decoder") == 0


def test_quantised_layers_stay_and_float_layers_beside_them_are_rewritten(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["between"]),
        helper.make_node("QuantizeLinear", ["between", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["rounded"]),
        helper.make_node("DequantizeLinear", ["w8", "scales", "zeros"], ["dequantised"], axis=1),
        helper.make_node("MatMul", ["rounded", "dequantised"], ["y"]),
    ]
    weights = {
        "w": random(64, 64),
        "scale": np.array(0.25, np.float32),
        "zero": np.array(0, np.int8),
        "w8": RNG.integers(-127, 128, (64, 48)).astype(np.int8),
        "scales": np.full(48, 0.01, np.float32),
        "zeros": np.zeros(48, np.int8),
    }
    used, error = rewritten(written(tmp_path, nodes, ["R", 64], weights), "head", random(6, 64))
    assert used.count("Conv") == 1
    assert used[-4:] == ["QuantizeLinear", "DequantizeLinear", "DequantizeLinear", "MatMul"]
    assert error < 0.02  # a value next to the edge of a step may fall on its other side
