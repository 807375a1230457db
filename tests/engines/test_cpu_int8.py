"""Calibrated stages built for the CPU: convolutions run in INT8, products with 4-bit weights read them as stored."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from calibrating import Calibrated
from onnx import NodeProto, TensorProto, helper, numpy_helper

from bitdance_edge.engines.rewriting import Graph
from bitdance_edge.engines.targets import cpu_int8, cpu_timing
from bitdance_edge.engines.targets.cpu_forms import apply_fast_forms
from bitdance_edge.engines.targets.cpu_int8 import unpacked_growth
from bitdance_edge.runtime.backends.onnxruntime import cpu_options, import_onnxruntime
from bitdance_edge.runtime.backends.processor import int8_path

RNG = np.random.default_rng(0)
CHANNELS, SIDE = 32, 12


def layer(x: str, y: str, *, rounded: bool) -> list[NodeProto]:
    """A convolution of x with INT8 weights to y, as calibration writes it."""
    result = f"{y}.unrounded" if rounded else y
    nodes = [
        helper.make_node("QuantizeLinear", [x, "scale", "zero"], [f"{y}.codes"]),
        helper.make_node("DequantizeLinear", [f"{y}.codes", "scale", "zero"], [f"{y}.input"]),
        helper.make_node("DequantizeLinear", ["weight", "scales"], [f"{y}.weight"], axis=0),
        helper.make_node("Conv", [f"{y}.input", f"{y}.weight", "bias"], [result], pads=[1, 1, 1, 1]),
    ]
    if rounded:
        nodes.append(helper.make_node("QuantizeLinear", [result, "wide", "zero"], [f"{y}.result"]))
        nodes.append(helper.make_node("DequantizeLinear", [f"{y}.result", "wide", "zero"], [y]))
    return nodes


def written(folder: Path, nodes: list[NodeProto], shapes: Mapping[str, Sequence[int]] | None = None) -> Path:
    """A graph of these nodes from ``x`` to ``y``; ``shapes`` are those of its reshapes."""
    weights: dict[str, np.ndarray] = {
        "scale": np.array(3 / 127, np.float32),
        "wide": np.array(9 / 127, np.float32),
        "zero": np.array(0, np.int8),
        "weight": RNG.integers(-127, 128, (CHANNELS, CHANNELS, 3, 3)).astype(np.int8),
        "scales": RNG.uniform(5e-4, 2e-3, CHANNELS).astype(np.float32),
        "bias": RNG.standard_normal(CHANNELS).astype(np.float32),
        **{name: np.array(sizes) for name, sizes in (shapes or {}).items()},
    }
    for i, node in enumerate(nodes):
        node.name = f"node_{i}"
    image = ["B", CHANNELS, SIDE, SIDE]
    graph = helper.make_graph(
        nodes,
        "layers",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, image)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None if shapes else image)],
        [numpy_helper.from_array(values, name) for name, values in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=11)
    path = folder / "graph.onnx"
    onnx.save(onnx.shape_inference.infer_shapes(model), path)
    return path


def run(path: Path, x: np.ndarray, options: Any = None) -> tuple[np.ndarray, Counter[str]]:
    """What a graph gives, and the operators that ONNX Runtime runs."""
    options = options or cpu_options(1, "int8")
    options.optimized_model_filepath = str(path.with_suffix(".fused.onnx"))
    session = import_onnxruntime().InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    made = onnx.load(path.with_suffix(".fused.onnx"), load_external_data=False).graph.node
    return np.asarray(session.run(None, {"x": x})[0]), Counter(node.op_type for node in made)


def in_float() -> Any:
    """Options with which Q and DQ are operators of their own, and products are in float32."""
    return cpu_options(1, "fp8")


def rewritten(path: Path, stage: str = "decoder") -> Path:
    graph, changed = Graph.read(path), path.with_name("changed.onnx")
    apply_fast_forms(graph, stage)
    graph.save(changed)
    onnx.checker.check_model(onnx.load(changed))
    return changed


def image() -> np.ndarray:
    return RNG.standard_normal((2, CHANNELS, SIDE, SIDE)).astype(np.float32)


def test_a_convolution_whose_result_is_rounded_is_one_int8_node(tmp_path: Path) -> None:
    path, x = written(tmp_path, layer("x", "y", rounded=True)), image()
    want, _ = run(path, x, in_float())
    got, operators = run(rewritten(path), x)
    assert (operators["Conv"], operators["QLinearConv"]) == (0, 1)
    assert got.std() > 0.3
    # Sums are exact here and rounded to float32 there: a result next to the edge of a step may fall on its other side.
    assert np.abs(got - want).max() <= 1.01 * 9 / 127
    assert np.mean(np.abs(got - want) > 1e-5) < 1e-3


def test_convolutions_that_share_a_rounded_input_are_all_int8(tmp_path: Path) -> None:
    one, other = layer("x", "a", rounded=True), layer("x", "b", rounded=True)
    other[3].input[0] = "a.input"
    nodes = [*one, *other[2:], helper.make_node("Add", ["a", "b"], ["y"])]
    changed = Graph.read(rewritten(written(tmp_path, nodes))).model.graph
    zeros = {node.input[2] for node in changed.node if node.op_type == "QuantizeLinear"}
    assert zeros == {"unsigned_zero"}


def test_one_whose_result_is_not_rounded_has_float_weights(tmp_path: Path) -> None:
    path, x = written(tmp_path, layer("x", "y", rounded=False)), image()
    want, _ = run(path, x, in_float())
    got, after = run(rewritten(path), x)
    assert np.allclose(got, want, atol=1e-4)
    assert after["DequantizeLinear"] == 1  # of its input; its weight is unpacked when it is built
    assert unpacked_growth(Graph.read(path)) == 3 * CHANNELS * CHANNELS * 9


@pytest.mark.parametrize(("least", "shifted"), [(-127, True), (-128, False)])
def test_weights_of_another_zero_point_give_the_same_codes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, least: int, shifted: bool
) -> None:
    path, x = written(tmp_path, layer("x", "y", rounded=True)), image()
    model = onnx.load(path)
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "weight")
    codes = numpy_helper.to_array(weight).copy()
    codes[0, 0, 0, 0] = least  # of which one less does not exist
    weight.CopyFrom(numpy_helper.from_array(codes, "weight"))
    onnx.save(model, path)
    found = []
    for faster in (False, True):
        monkeypatch.setattr(cpu_int8, "has_amx", lambda faster=faster: faster)
        monkeypatch.setattr(cpu_int8, "products_are_faster", lambda *_: True)
        changed = rewritten(path)
        got, operators = run(changed, x)
        found.append(got)
        assert operators["QLinearConv"] == 1
        assert ("weight/zeros" in Graph.read(changed).weights) == (faster and shifted)
    assert np.array_equal(*found)


@pytest.mark.parametrize(("usual", "products", "faster"), [(3, 1, True), (1, 3, False), (1, 1, False)])
@pytest.mark.parametrize("size", [[SIDE, SIDE], ["H", "W"]])
def test_the_faster_kernel_of_a_convolution_is_taken(
    size: list[int | str], usual: float, products: float, faster: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, open_session = [0.0], cpu_timing._session
    monkeypatch.setattr(cpu_timing.time, "perf_counter", lambda: clock[0])

    def timed(attributes: Any, channels: int, filters: tuple[int, ...], zero: int) -> Any:
        session = open_session(attributes, channels, filters, zero)

        def run(_: None, feeds: dict[str, np.ndarray]) -> None:
            assert session.run(None, feeds)[0].shape == (1, *feeds["x"].shape[1:3], CHANNELS)
            clock[0] += products if zero else usual

        return SimpleNamespace(run=run)

    monkeypatch.setattr(cpu_timing, "_session", timed)
    cpu_timing._timed.cache_clear()
    node = helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1], strides=[1, 1], group=1)
    assert cpu_timing.products_are_faster(node, ["B", CHANNELS, *size], [CHANNELS, CHANNELS, 3, 3]) == faster
    cpu_timing._timed.cache_clear()


def test_a_convolution_that_cannot_be_timed_keeps_its_kernel() -> None:
    node = helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1], strides=[1, 1], group=1)
    filters = [CHANNELS, CHANNELS, 3, 3]
    assert not cpu_timing.products_are_faster(node, None, filters)
    assert not cpu_timing.products_are_faster(node, ["B", CHANNELS + 1, SIDE, SIDE], filters)  # cannot be run


def test_a_pixel_shuffle_moves_codes_with_channels_last(tmp_path: Path) -> None:
    shuffle = [
        helper.make_node("Reshape", ["wide_image", "parts"], ["split"]),
        helper.make_node("Transpose", ["split"], ["interleaved"], perm=[0, 3, 4, 1, 5, 2]),
        helper.make_node("Reshape", ["interleaved", "whole"], ["y"]),
    ]
    shapes = {"parts": [-1, 2, 2, CHANNELS // 4, SIDE, SIDE], "whole": [-1, CHANNELS // 4, 2 * SIDE, 2 * SIDE]}
    path, x = written(tmp_path, [*layer("x", "wide_image", rounded=True), *shuffle], shapes), image()
    want, before = run(path, x)
    got, after = run(rewritten(path), x)
    assert got.std() > 0.3
    assert np.array_equal(got, want)
    (last,) = (
        node for node in Graph.read(path.with_name("changed.onnx")).model.graph.node if node.name.endswith("/pixels")
    )
    assert last.op_type == "DequantizeLinear"  # behind the transposes
    assert before["QLinearConv"] == after["QLinearConv"] == 1


def test_other_stages_are_left_unchanged(tmp_path: Path) -> None:
    path = written(tmp_path, layer("x", "y", rounded=True))
    assert apply_fast_forms(Graph.read(path), "tokens") == 0


@pytest.mark.parametrize("widened", ["0", "1"])
def test_sums_do_not_saturate(tmp_path: Path, widened: str) -> None:
    """Products at the ends of the range, with the kernels for processors with VNNI and for those without."""
    if widened == "0" and int8_path().widened:
        pytest.skip("this processor's fast kernels saturate, and are not used")
    path = written(tmp_path, layer("x", "y", rounded=True))
    model = onnx.load(path)
    full = {"weight": np.full((CHANNELS, CHANNELS, 3, 3), 127, np.int8), "wide": np.array(4, np.float32)}
    for tensor in model.graph.initializer:
        if tensor.name in full:
            tensor.CopyFrom(numpy_helper.from_array(full[tensor.name], tensor.name))
    onnx.save(model, path)
    options = cpu_options(1, "int8")
    options.add_session_config_entry("session.x64quantprecision", widened)
    x = RNG.choice(np.array([-3, 3, 2.9], np.float32), (1, CHANNELS, SIDE, SIDE))
    got, operators = run(rewritten(path), x, options)
    want, _ = run(path, x, in_float())
    assert operators["QLinearConv"] == 1
    assert np.abs(got - want).max() <= 4.01


@pytest.mark.parametrize("stage", ["decoder", "encoder"])
def test_a_calibrated_stage_has_no_convolution_in_float_but_its_last(
    calibrated: Callable[[str], Calibrated], tmp_path: Path, stage: str
) -> None:
    path = calibrated("int8").bundle.verified(stage)
    nodes = onnx.load(path, load_external_data=False).graph.node
    graph, changed = Graph.read(path), tmp_path / "changed.onnx"
    rewritten_layers = sum(node.op_type in ("Conv", "InstanceNormalization") for node in nodes)
    assert apply_fast_forms(graph, stage) == rewritten_layers
    graph.save(changed)
    options = cpu_options(1, "int8")
    options.optimized_model_filepath = str(tmp_path / "fused.onnx")
    import_onnxruntime().InferenceSession(str(changed), options, providers=["CPUExecutionProvider"])
    fused = Counter(node.op_type for node in onnx.load(tmp_path / "fused.onnx", load_external_data=False).graph.node)
    assert fused["Conv"] == 1
    assert fused["QLinearConv"] == sum(node.op_type == "Conv" for node in nodes) - 1 > 8


@pytest.mark.parametrize("stage", ["backbone", "head"])
def test_products_with_four_bit_weights_read_them_as_they_are_stored(
    calibrated: Callable[[str], Calibrated], tmp_path: Path, stage: str
) -> None:
    path = calibrated("int4").bundle.verified(stage)
    products = sum(node.op_type == "MatMul" for node in onnx.load(path, load_external_data=False).graph.node)
    graph, changed = Graph.read(path), tmp_path / "changed.onnx"
    apply_fast_forms(graph, stage)
    graph.save(changed)
    options = cpu_options(1, "int4")
    options.optimized_model_filepath = str(tmp_path / "fused.onnx")
    import_onnxruntime().InferenceSession(str(changed), options, providers=["CPUExecutionProvider"])
    nodes = onnx.load(tmp_path / "fused.onnx", load_external_data=False).graph.node
    fused = [node for node in nodes if node.op_type == "MatMulNBits"]
    levels = {attribute.i for node in fused for attribute in node.attribute if attribute.name == "accuracy_level"}
    assert len(fused) == products > 10
    assert levels == {4}  # activations are rounded to 8 bits: level 0 would unpack to float32
