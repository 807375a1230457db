"""Calibrated bundles build with TensorRT-RTX for the targets that have their types, and INT8 is exact on the CPU."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from building import build
from calibrating import OPTIONS, Calibrated
from onnx import TensorProto, helper, numpy_helper

from bitdance_edge.calibration.calibrate import calibrate
from bitdance_edge.engines.plan import plan_builds
from bitdance_edge.engines.targets import parse_target
from bitdance_edge.runtime import BuildError, Bundle
from bitdance_edge.runtime.backends.onnxruntime import cpu_options, import_onnxruntime

ALL = ("tokens", "time", "backbone", "modulation", "head", "decoder", "encoder")
LARGE = ("backbone", "head", "decoder", "encoder")  # the others have no layers of another kind


@pytest.mark.parametrize(("precision", "stages"), [("int8", ALL), ("fp8", LARGE), ("int4", LARGE)])
def test_engines_are_built(calibrated: Callable[[str], Calibrated], precision: str, stages: tuple[str, ...]) -> None:
    made = build(calibrated(precision).bundle, "rtx", stages)
    for stage, record in made.items():
        # Those two have convolutions, and matrices that do not divide into groups.
        expected = "int8" if stage in ("encoder", "decoder") and precision == "int4" else precision
        assert record.precision.startswith(expected), (stage, record.precision)


def test_a_half_precision_bundle_keeps_its_type_with_int8(digits: Callable[[str], Bundle], tmp_path: Path) -> None:
    recipe = replace(OPTIONS.recipe, precisions={"head": "int8", "backbone": "int8"}, weigh_times=False)
    asked = replace(OPTIONS, recipe=recipe, test_images=1, held_out=1, data=tmp_path / "recordings")
    found = calibrate(digits("fp16"), tmp_path / "out", asked)
    assert found.losses.bits.forced < 0.05
    made = build(Bundle.open(tmp_path / "out"), "rtx", ("head", "backbone"))
    assert {record.precision for record in made.values()} == {"int8+fp16"}


def test_fp8_is_refused_where_a_gpu_has_none(calibrated: Callable[[str], Calibrated]) -> None:
    plan = plan_builds(calibrated("fp8").bundle, parse_target("rtx:8.6"), ["head"], 1, force=True)
    with pytest.raises(BuildError, match=r"fp8 needs compute capability 8\.9, not 8\.6"):
        plan.require_possible()


@pytest.mark.parametrize("inputs", [64, 1024])
def test_int8_products_do_not_saturate(inputs: int) -> None:
    """Sums of products at the ends of the range, which 16-bit accumulation of pairs would clip."""
    weight = np.full((inputs, 16), 127, np.int8)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "one", "zero"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "one", "zero"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "ones", "zeros"], ["wd"], axis=1),
        helper.make_node("MatMul", ["xd", "wd"], ["y"]),
    ]
    constants = {
        "one": np.array(1, np.float32),
        "zero": np.array(0, np.int8),
        "w": weight,
        "ones": np.ones(16, np.float32),
        "zeros": np.zeros(16, np.int8),
    }
    graph = helper.make_graph(
        nodes,
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, inputs])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, 16])],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    options = cpu_options(1, "int8")
    session = import_onnxruntime().InferenceSession(model.SerializeToString(), options)
    x = np.random.default_rng(0).choice(np.array([-127, 127, 126], np.float32), (4, inputs))
    assert np.array_equal(session.run(None, {"x": x})[0], x @ weight.astype(np.float32))
