"""Weights as codes and scales: to the nearest, as a graph computes with them, and better with error feedback."""

from typing import Any

import ml_dtypes
import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from bitdance_edge.calibration import gptq
from bitdance_edge.calibration.emulate import on_this_cpu
from bitdance_edge.calibration.errors import CalibrationError
from bitdance_edge.calibration.gptq import encode_with_feedback
from bitdance_edge.calibration.stored_weights import parts
from bitdance_edge.calibration.weights import CODES, Encoded, encode, group_of, scale_type
from bitdance_edge.runtime.bundle.dtypes import ONNX_NUMBERS

FLOAT = np.dtype("float32")
ERRORS = {"int8": 0.01, "fp8": 0.03, "int4": 0.11, "nvfp4": 0.1}  # of normally distributed weights


def weight(outputs: int = 48, inputs: int = 256) -> np.ndarray:
    return (0.02 * np.random.default_rng(0).standard_normal((outputs, inputs))).astype(np.float32)


def unpacked(encoded: Encoded, precision: str, shape: tuple[int, ...], outputs_axis: int, number: int) -> np.ndarray:
    """What DequantizeLinear makes of the stored parts, by ONNX Runtime."""
    stored = parts(precision, shape, outputs_axis, number)
    constants = [
        TensorProto(name=p.suffix, data_type=p.data_type, dims=p.dims, raw_data=p.content(encoded)) for p in stored
    ]
    nodes, scales = [], "scales"
    if precision == "nvfp4":
        nodes.append(helper.make_node("DequantizeLinear", ["scales", "factor"], ["wide"]))
        scales = "wide"
    groups: dict[str, Any] = {"axis": outputs_axis}
    if precision in ("int4", "nvfp4"):
        groups = {"axis": 1 - outputs_axis, "block_size": encoded.group}
    nodes.append(helper.make_node("DequantizeLinear", ["codes", scales], ["w"], **groups))
    nodes.append(helper.make_node("Add", ["w", "zero"], ["y"]))
    constants.append(numpy_helper.from_array(np.zeros(1, helper.tensor_dtype_to_np_dtype(number)), "zero"))
    graph = helper.make_graph(nodes, "g", [], [helper.make_tensor_value_info("y", number, shape)], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=10)
    model = on_this_cpu(model, None)  # type: ignore[arg-type]  no constant is in a file
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {})[0])


@pytest.mark.parametrize("number", [TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16])
@pytest.mark.parametrize("precision", CODES)
def test_a_graph_computes_with_the_encoded_values(precision: str, number: int) -> None:
    name = ONNX_NUMBERS[number]
    given = weight()
    encoded = encode(given, precision, scale_type(name))
    values = encoded.values()
    if number == TensorProto.FLOAT16:
        values = values.astype(np.float16).astype(np.float32)
    for shape, axis, want in (((256, 48), 1, values.T), ((48, 256), 0, values)):
        got = unpacked(encoded, precision, shape, axis, number).astype(np.float32)
        np.testing.assert_array_equal(got, want)
    error = float(np.sqrt(np.mean((encoded.values() - given) ** 2) / np.mean(given**2)))
    assert error == pytest.approx(encoded.relative_error, rel=1e-3) and 0 < error < ERRORS[precision]


def test_numbers_are_the_nearest_of_their_format() -> None:
    given = weight()
    for precision, kind in (("fp8", ml_dtypes.float8_e4m3fn), ("nvfp4", ml_dtypes.float4_e2m1fn)):
        encoded = encode(given, precision, FLOAT)
        scaled = given / np.repeat(encoded.scales.values, encoded.group, axis=1)
        largest = float(ml_dtypes.finfo(kind).max)
        nearest = np.clip(scaled, -largest, largest).astype(kind).astype(np.float32)
        numbers = encoded.values() / np.repeat(encoded.scales.values, encoded.group, axis=1)
        further = np.abs(numbers - scaled) - np.abs(nearest - scaled)
        # FP8 is found by way of float16: a value next to the middle of two numbers may get the other one.
        assert (further <= 2.0**-10 * np.abs(scaled) + 1e-5).all()


@pytest.mark.parametrize("stored", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("precision", CODES)
def test_every_source_type_and_number_of_threads_gives_the_same(precision: str, stored: type) -> None:
    given = weight(200, 4096).astype(stored)
    kind = scale_type(np.dtype(stored).name)
    one, two = encode(given, precision, kind, threads=1), encode(given, precision, kind, threads=3)
    wide = encode(given.astype(np.float32), precision, kind)
    for other in (two, wide):
        np.testing.assert_array_equal(one.values(), other.values())


def test_zeros_and_outliers_stay_finite() -> None:
    given = weight()
    given[0], given[1, 5], given[2, 7] = 0.0, 1e4, -1e25
    for precision in CODES:
        encoded = encode(given, precision, FLOAT)
        assert np.isfinite(encoded.values()).all()
        assert not encoded.values()[0].any()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_weight_that_is_not_finite_is_refused(bad: float) -> None:
    given = weight()
    given[3, 100] = bad
    for make in (lambda: encode(given, "int4", FLOAT), lambda: encode_with_feedback(given, np.eye(256), "int4", FLOAT)):
        with pytest.raises(CalibrationError, match="NaN or infinite"):
            make()


def test_groups_divide_the_inputs() -> None:
    assert [group_of("int4", inputs) for inputs in (256, 192, 160, 48)] == [128, 64, 32, 16]
    assert group_of("nvfp4", 256) == 16 and group_of("fp8", 40) == 40
    with pytest.raises(CalibrationError, match="40 inputs do not divide"):
        group_of("int4", 40)


@pytest.mark.parametrize(("precision", "share"), [("int4", 0.5), ("nvfp4", 0.5)])
def test_error_feedback_halves_the_error_of_the_output(precision: str, share: float) -> None:
    generator = np.random.default_rng(1)
    mixed = generator.standard_normal((32, 256)).astype(np.float32)
    seen, held = (
        (generator.standard_normal((rows, 32)) @ mixed + 0.3 * generator.standard_normal((rows, 256))).astype(
            np.float32
        )
        for rows in (2000, 500)
    )
    seen[:, 9] = held[:, 9] = 0  # an input that is always zero
    given = weight()
    want = held @ given.T
    plain = encode(given, precision, FLOAT)
    fed = encode_with_feedback(given, seen.T @ seen, precision, FLOAT)
    errors = [np.linalg.norm(held @ made.values().T - want) for made in (plain, fed)]
    assert errors[1] < share * errors[0]
    assert fed.relative_error > plain.relative_error  # the weights themselves are further off


def test_inputs_that_vary_most_are_rounded_first_in_whole_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    order = gptq.Order.of(np.array([1.0, 2.0, 9.0, 3.0, 4.0, 4.0]), 2)
    assert order.groups.tolist() == [1, 2, 0] and order.inputs.tolist() == [2, 3, 4, 5, 1, 0]
    generator = np.random.default_rng(2)
    spread = np.geomspace(0.02, 2, 256)  # the last inputs vary most
    mixed = generator.standard_normal((64, 256)) * spread
    seen, held = ((generator.standard_normal((rows, 64)) @ mixed).astype(np.float32) for rows in (2000, 500))
    given = weight()
    want = held @ given.T

    def error() -> float:
        made = encode_with_feedback(given, seen.T @ seen, "int4", FLOAT)
        return float(np.linalg.norm(held @ made.values().T - want))

    found = error()
    unsorted = gptq.Order(np.arange(2), np.arange(256))
    monkeypatch.setattr(gptq.Order, "of", lambda energy, group: unsorted)
    assert found < 0.9 * error()
