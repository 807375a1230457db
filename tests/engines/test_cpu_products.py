"""Quantised products built for the CPU add their biases, and give results as the stage has them, without a copy."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from calibrating import Calibrated
from onnx import NodeProto, TensorProto, helper, numpy_helper

from bitdance_edge.engines.rewriting import Graph
from bitdance_edge.engines.targets.cpu_forms import apply_fast_forms
from bitdance_edge.engines.targets.cpu_products import add_biases, keep_dimensions
from bitdance_edge.runtime.backends.onnxruntime import cpu_options, import_onnxruntime

RNG = np.random.default_rng(0)
INPUTS, OUTPUTS = 64, 48


def product(x: str, y: str, *, quantised: bool = True) -> list[NodeProto]:
    """A product of rows of x with its bias, as calibration writes it."""
    nodes = [
        helper.make_node("QuantizeLinear", [x, "scale", "zero"], [f"{y}.codes"]),
        helper.make_node("DequantizeLinear", [f"{y}.codes", "scale", "zero"], [f"{y}.input"]),
        helper.make_node("DequantizeLinear", ["codes", "scales"], [f"{y}.weight"], axis=1),
        helper.make_node("MatMul", [f"{y}.input", f"{y}.weight"], [f"{y}.product"]),
        helper.make_node("Add", [f"{y}.product", "bias"], [y]),
    ]
    return nodes if quantised else [helper.make_node("MatMul", [x, "weight"], [f"{y}.product"]), nodes[-1]]


def flattened(between: str = "Sigmoid", *, quantised: bool = True) -> list[NodeProto]:
    """As a modulation is exported: rows are flattened, and two results get their dimensions back."""
    return [
        helper.make_node("Reshape", ["x", "rows"], ["flat"]),
        helper.make_node(between, ["flat"], ["gate"]),
        helper.make_node("Mul", ["flat", "gate"], ["silu"]),
        *product("silu", "a", quantised=quantised),
        *product("silu", "b", quantised=quantised),
        helper.make_node("Reshape", ["a", "whole"], ["y"]),
        helper.make_node("Reshape", ["b", "whole"], ["z"]),
    ]


def written(folder: Path, nodes: list[NodeProto], results: Sequence[str], rows: Sequence[int | str]) -> Path:
    """A graph of these nodes from ``x`` ``[*rows, INPUTS]``."""
    weights = {
        "scale": np.array(3 / 127, np.float32),
        "zero": np.array(0, np.int8),
        "codes": RNG.integers(-127, 128, (INPUTS, OUTPUTS)).astype(np.int8),
        "scales": RNG.uniform(5e-4, 2e-3, OUTPUTS).astype(np.float32),
        "weight": RNG.standard_normal((INPUTS, OUTPUTS)).astype(np.float32),
        "bias": RNG.standard_normal(OUTPUTS).astype(np.float32),
        "rows": np.array([-1, INPUTS]),
        "whole": np.array([-1, 2, 3, OUTPUTS]),
    }
    for i, node in enumerate(nodes):
        node.name = f"node_{i}"
    graph = helper.make_graph(
        nodes,
        "products",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [*rows, INPUTS])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [*rows, OUTPUTS]) for name in results],
        [numpy_helper.from_array(values, name) for name, values in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=11)
    path = folder / "graph.onnx"
    onnx.save(onnx.shape_inference.infer_shapes(model), path)
    return path


def run(path: Path, x: np.ndarray, optimised: Path | None = None) -> list[np.ndarray]:
    options = cpu_options(1, "int8")
    if optimised is not None:
        options.optimized_model_filepath = str(optimised)
    session = import_onnxruntime().InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return [np.asarray(values) for values in session.run(None, {"x": x})]


def test_a_product_adds_its_bias(tmp_path: Path) -> None:
    path, optimised = written(tmp_path, product("x", "y"), ["y"], ["R"]), tmp_path / "optimised.onnx"
    x = RNG.standard_normal((6, INPUTS)).astype(np.float32)
    want = run(path, x, optimised)
    graph = Graph.read(optimised)
    assert add_biases(graph) == 1
    graph.save(tmp_path / "changed.onnx")
    assert [node.op_type for node in graph.model.graph.node] == ["QuantizeLinear", "MatMulIntegerToFloat"]
    assert np.array_equal(run(tmp_path / "changed.onnx", x), want)
    assert add_biases(Graph.read(tmp_path / "changed.onnx")) == 0


def test_a_product_that_others_read_leaves_its_bias(tmp_path: Path) -> None:
    nodes = [*product("x", "y"), helper.make_node("Neg", ["y.product"], ["z"])]
    path, optimised = written(tmp_path, nodes, ["y", "z"], ["R"]), tmp_path / "optimised.onnx"
    run(path, np.zeros((6, INPUTS), np.float32), optimised)
    assert add_biases(Graph.read(optimised)) == 0


def test_results_have_their_dimensions_without_a_reshape(tmp_path: Path) -> None:
    path, x = written(tmp_path, flattened(), ["y", "z"], ["M", 2, 3]), RNG.standard_normal((5, 2, 3, INPUTS))
    want, graph = run(path, x.astype(np.float32)), Graph.read(path)
    assert keep_dimensions(graph) == 2
    changed = tmp_path / "changed.onnx"
    graph.save(changed)
    onnx.checker.check_model(onnx.load(changed), full_check=True)
    got = run(changed, x.astype(np.float32))
    assert "Reshape" not in {node.op_type for node in graph.model.graph.node}
    assert [values.shape for values in got] == [(5, 2, 3, OUTPUTS)] * 2
    assert all(np.array_equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize(
    ("nodes", "results"),
    [
        (flattened(quantised=False), ["y", "z"]),  # only a flat product in float32 adds its bias
        (flattened("CumSum"), ["y", "z"]),  # rows are not computed one by one
        ([*flattened(), helper.make_node("Transpose", ["a"], ["w"])], ["y", "z", "w"]),
        ([*flattened(), helper.make_node("Sigmoid", ["a"], ["gate of a"])], ["y", "z"]),  # others read a flat result
    ],
)
def test_other_reshapes_stay(tmp_path: Path, nodes: list[NodeProto], results: list[str]) -> None:
    for node in nodes:
        if node.op_type == "CumSum":
            node.input.append("zero")
    path = written(tmp_path, nodes, results, ["M", 2, 3])
    graph = Graph.read(path)
    assert keep_dimensions(graph) == 0
    assert graph.model.SerializeToString() == onnx.load(path).SerializeToString()


def test_a_calibrated_modulation_copies_no_result(calibrated: Callable[[str], Calibrated], tmp_path: Path) -> None:
    bundle = calibrated("int8").bundle
    graph = Graph.read(bundle.verified("modulation"))
    assert apply_fast_forms(graph, "modulation") == len(bundle.stage("modulation").outputs) > 1
