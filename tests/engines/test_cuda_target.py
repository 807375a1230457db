"""The graphs for ONNX Runtime on CUDA have no InstanceNormalization, and compute what the portable ones do."""

import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from building import build
from onnx import TensorProto, helper, numpy_helper

from bitdance_edge.engines.rewriting import Graph
from bitdance_edge.engines.targets import parse_target
from bitdance_edge.engines.targets.cuda import normalise_rows
from bitdance_edge.engines.targets.cuda_forms import apply_fewer_launches
from bitdance_edge.runtime import Bundle
from bitdance_edge.runtime.backends.built_graphs import BuiltGraphs
from bitdance_edge.runtime.bundle.record import target_folder

HALF = "cc_1x"  # the fixture that other tests export in half precision too
TYPES = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}


@pytest.fixture(params=["fp32", "fp16", "bf16"])
def unbuilt(exported: Callable[..., Bundle], request: pytest.FixtureRequest, tmp_path: Path) -> Bundle:
    source = exported("cc_4x_patch" if request.param == "fp32" else HALF, precision=request.param).folder
    return Bundle.open(shutil.copytree(source, tmp_path / "bundle", ignore=shutil.ignore_patterns("targets")))


def test_the_image_stages_are_rewritten_and_checked(unbuilt: Bundle) -> None:
    precision = unbuilt.stage("decoder").precision
    records = build(unbuilt, "cuda", ["decoder", "encoder"])
    folder = target_folder(unbuilt, "cuda")
    for stage, record in records.items():
        model = onnx.load(folder / record.files[0].name, load_external_data=False)
        used = Counter(node.op_type for node in model.graph.node)
        assert "InstanceNormalization" not in used
        # Norms of one shape share their scale of ones.
        assert used["LayerNormalization"] > used["ConstantOfShape"] > 0
        exported = onnx.load(unbuilt.folder / unbuilt.stage(stage).graph.path, load_external_data=False).graph.node
        assert all(node.name.startswith(tuple(each.name for each in exported)) for node in model.graph.node)
        if precision == "bf16":
            assert record.error is None
        else:
            assert record.error is not None
            # Of the encoder the error is the share of flipped bits.
            assert record.error <= ({"fp32": 1 / 255, "fp16": 2 / 255}[precision] if stage == "decoder" else 0.002)
    assert BuiltGraphs.find(unbuilt, "cuda", ort.__version__).records.keys() == records.keys()


def test_head_and_backbone_take_fewer_launches_and_compute_the_same(unbuilt: Bundle) -> None:
    precision = unbuilt.stage("head").precision
    records = build(unbuilt, "cuda", ["head", "backbone"])
    for stage, record in records.items():
        model = onnx.load(target_folder(unbuilt, "cuda") / record.files[0].name, load_external_data=False)
        used = Counter(node.op_type for node in model.graph.node)
        assert used["GatedRMSNorm"] > 0
        assert used["Sigmoid"] == 0
        if stage == "head":
            assert used["GatedAdd"] > used["LayerNormalization"]
            assert not used["Transpose"]
        # Where nothing is rounded to half precision in between, the bits are those of the portable graph.
        assert record.error == {"fp32": 0, "bf16": None}.get(precision, record.error)


def test_what_cannot_run_here_says_so(
    exported: Callable[..., Bundle], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from bitdance_edge.cli import main

    folder = shutil.copytree(exported(HALF, precision="bf16").folder, tmp_path / "bundle")
    assert main(["build", str(folder), "--target", "cuda", "--stages", "decoder"]) == 0
    output = capsys.readouterr().out
    assert "not run here" in output
    assert "not checked against the bundle's own graphs: ONNX Runtime has no bfloat16 kernels on a CPU" in output


def gated_graph(tmp_path: Path, nodes: list[onnx.NodeProto], shapes: dict[str, list]) -> Graph:
    """A graph of float32 tensors of these shapes; the last node's output is the graph's."""
    result = nodes[-1].output[0]
    values = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()}
    made = {output for node in nodes for output in node.output}
    inputs = [value for name, value in values.items() if name not in made]
    graph = helper.make_graph(nodes, "gated", inputs, [values[result]])
    graph.value_info.extend(value for name, value in values.items() if name in made - {result})
    path = tmp_path / "gated.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=10), path)
    return Graph.read(path)


@pytest.mark.parametrize(
    ("gate", "rewritten"),
    [(["B", 4, 8], True), ([1], True), ([], True), ([8], False), ([1, 1, 8], False), (["B", 4, 1], False)],
)
@pytest.mark.parametrize("swapped", [True, False])
def test_a_gated_sum_of_any_shape(tmp_path: Path, gate: list, rewritten: bool, swapped: bool) -> None:
    """Only a gate of every element's own, or one number, has the form; with the others the graph stays as it is."""
    order = ["y", "gate"][:: -1 if swapped else 1]
    nodes = [
        helper.make_node("Mul", order, ["scaled"], name="scale"),
        helper.make_node("Add", ["scaled", "x"][:: -1 if swapped else 1], ["sum"], name="add"),
    ]
    whole = ["B", 4, 8]
    graph = gated_graph(tmp_path, nodes, {"x": whole, "y": whole, "gate": gate, "scaled": whole, "sum": whole})
    assert apply_fewer_launches(graph) == rewritten
    graph.save(tmp_path / "changed.onnx")
    rng = np.random.default_rng(2)
    feeds = {
        name: rng.standard_normal([3 if size == "B" else size for size in shape]).astype(np.float32)
        for name, shape in (("x", whole), ("y", whole), ("gate", gate))
    }
    wanted, got = (
        np.asarray(ort.InferenceSession(str(tmp_path / name), providers=["CPUExecutionProvider"]).run(None, feeds)[0])
        for name in ("gated.onnx", "changed.onnx")
    )
    np.testing.assert_array_equal(got, wanted)


def test_a_product_that_others_read_stays(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Mul", ["y", "gate"], ["scaled"], name="scale"),
        helper.make_node("Add", ["x", "scaled"], ["sum"], name="add"),
        helper.make_node("Sub", ["sum", "scaled"], ["left"], name="sub"),
    ]
    names = ("x", "y", "gate", "scaled", "sum", "left")
    assert apply_fewer_launches(gated_graph(tmp_path, nodes, {name: ["B", 8] for name in names})) == 0


@pytest.mark.parametrize(("precision", "allowed"), [("fp32", 1e-6), ("fp16", 2e-3)])
@pytest.mark.parametrize("plain", [True, False])
def test_normalisation_of_rows(tmp_path: Path, precision: str, allowed: float, plain: bool) -> None:
    rng = np.random.default_rng(1)
    kind, dtype = TYPES[precision], np.float32 if precision == "fp32" else np.float16
    scale, bias = (np.ones(4), np.zeros(4)) if plain else (rng.uniform(0.5, 2, 4), rng.standard_normal(4))
    node = helper.make_node("InstanceNormalization", ["x", "scale", "bias"], ["y"], name="norm", epsilon=1e-6)
    graph = helper.make_graph(
        [node],
        "norm",
        [helper.make_tensor_value_info("x", kind, ["B", 4, 256])],
        [helper.make_tensor_value_info("y", kind, ["B", 4, 256])],
        [numpy_helper.from_array(value.astype(dtype), name) for name, value in (("scale", scale), ("bias", bias))],
    )
    path, changed = tmp_path / "norm.onnx", tmp_path / "changed.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10), path)
    rewritten = Graph.read(path)
    normalise_rows(rewritten, rewritten.model.graph.node[0], {})
    rewritten.save(changed)
    onnx.checker.check_model(changed, full_check=True)
    used = [node.op_type for node in onnx.load(changed).graph.node]
    assert used == ["Shape", "ConstantOfShape", "LayerNormalization", *([] if plain else ["Mul", "Add"])]
    x = (rng.standard_normal((2, 4, 256)) + 20).astype(dtype)
    exact = x.astype(np.float64)
    exact = (exact - exact.mean(2, keepdims=True)) / np.sqrt(exact.var(2, keepdims=True) + 1e-6)
    exact = exact * scale.astype(dtype).astype(np.float64)[:, None] + bias.astype(dtype).astype(np.float64)[:, None]
    got = np.asarray(ort.InferenceSession(str(changed), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0])
    assert got.dtype == dtype
    assert np.abs(got - exact).max() / np.abs(exact).max() < allowed


def test_other_stages_are_written_unchanged_and_the_plan_says_so(
    exported: Callable[..., Bundle], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from bitdance_edge.cli import main

    bundle = Bundle.open(shutil.copytree(exported("cc_4x_patch").folder, tmp_path / "bundle"))
    assert main(["build", str(bundle.folder), "--target", "cuda", "--stages", "time", "--dry-run"]) == 0
    assert "unchanged: its portable graph runs on CUDA" in capsys.readouterr().out
    records = build(bundle, "cuda", ["time"])
    assert records["time"].error == 0


def test_a_build_for_cuda_is_for_any_gpu_and_version_bound(unbuilt: Bundle) -> None:
    if unbuilt.stage("decoder").precision != "fp32":
        pytest.skip("once is enough")
    records = build(unbuilt, "cuda", ["decoder"])
    assert records["decoder"].devices == ()
    assert parse_target("cuda").fits_here((), "")
    other = replace(records["decoder"], library_version="1.0.0")
    assert other.mismatch(unbuilt, ort.__version__) is not None
