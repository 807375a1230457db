"""Calibrations that do not hold the bundle: weights alone, and layer by layer; stopped, resumed, compared, built."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from building import build
from onnx import TensorProto

from bitdance_edge.calibration import stage_file
from bitdance_edge.calibration.by_layer import LayerOptions, calibrate_by_layer
from bitdance_edge.calibration.errors import CalibrationError
from bitdance_edge.calibration.recipe import CalibrationRecipe, Draw
from bitdance_edge.calibration.segments import segments, whole
from bitdance_edge.calibration.teacher import taught_images
from bitdance_edge.calibration.weights_only import WeightsOptions, calibrate_weights
from bitdance_edge.cli import main
from bitdance_edge.engines.graph import read_graph
from bitdance_edge.runtime import Bundle
from bitdance_edge.runtime.bundle.manifest import file_spec
from bitdance_edge.runtime.request import Request

STAGES = ("tokens", "time", "backbone", "modulation", "head")
STORED = {
    "int8": TensorProto.INT8,
    "fp8": TensorProto.FLOAT8E4M3FN,
    "int4": TensorProto.INT4,
    "nvfp4": TensorProto.FLOAT4E2M1,
}


def recipe(precision: str, **changes: object) -> CalibrationRecipe:
    made = CalibrationRecipe(
        precisions=dict.fromkeys(STAGES, precision),
        calibrator="mse",
        percentile=99.99,
        smooth=None,
        weigh_times=False,
        draw=Draw(images=1, seed=0),
    )
    return replace(made, **changes)


def weights_options(precision: str, **changes: Any) -> WeightsOptions:
    return WeightsOptions(recipe(precision, feedback=False, weights_only=True), **changes)


def files(folder: Path) -> dict[str, str]:
    """Path -> SHA-256 of the stages' files."""
    return {file.path: file.sha256 for stage in Bundle.open(folder).stages.values() for file in stage.files}


@pytest.mark.parametrize("precision", STORED)
def test_weights_alone_of_a_linked_bundle(linked_bf16: Bundle, tmp_path: Path, precision: str) -> None:
    found = calibrate_weights(linked_bf16, tmp_path / "out", weights_options(precision))
    made = Bundle.open(tmp_path / "out")
    assert not made.links and not list(tmp_path.glob(".*"))
    for stage in STAGES:
        graph = onnx.load(made.folder / made.stages[stage].graph.path).graph
        assert made.stages[stage].precision == precision and made.stages[stage].max_error is None
        assert STORED[precision] in {tensor.data_type for tensor in graph.initializer}
        assert "QuantizeLinear" not in {node.op_type for node in graph.node}
    assert made.stages["decoder"].precision == made.stages["prompt"].precision == "bf16"
    report = json.loads((made.folder / "calibration" / "report.json").read_text(encoding="utf-8"))
    assert set(report["layers"]) == set(found.formats) and "Nothing was run" in report["not_measured"]
    assert all(0 < layer["error_of_weights"] < 0.2 for layer in report["layers"].values())
    assert main(["inspect", str(made.folder), "--verify", "--memory", "1GB"]) == 0


class Stop(Exception):
    """Stands for a process that ends."""


def test_a_stopped_run_goes_on_and_gives_the_same_bytes(
    linked_bf16: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    added: list[str] = []
    journal_add, ends_at = stage_file.Journal.add, 0

    def add(journal: stage_file.Journal, line: dict) -> None:
        added.append(line["unit"])
        if len(added) == ends_at:
            raise Stop  # behind the weight, ahead of its line
        journal_add(journal, line)

    monkeypatch.setattr(stage_file.Journal, "add", add)
    calibrate_weights(linked_bf16, tmp_path / "whole", weights_options("int4"))
    units = added.copy()
    added.clear()
    ends_at = 9
    with pytest.raises(Stop):
        calibrate_weights(linked_bf16, tmp_path / "out", weights_options("int4"))
    assert not (tmp_path / "out").exists()
    (begun,) = tmp_path.glob(".out.calibrating-*")
    with (begun / "written.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"file": "cut')
    added.clear()
    ends_at = 0
    calibrate_weights(linked_bf16, tmp_path / "out", weights_options("int4"))
    assert added == units[8:]
    assert files(tmp_path / "out") == files(tmp_path / "whole")
    assert not list(tmp_path.glob(".*"))


def test_a_damaged_weight_names_its_layer(linked_bf16: Bundle, tmp_path: Path) -> None:
    copied = Bundle.open(shutil.copytree(linked_bf16.folder, tmp_path / "copy"))
    path = copied.folder / copied.stages["time"].graph.path
    model = onnx.load(path, load_external_data=False)
    tensor = next(t for t in model.graph.initializer if len(t.dims) == 2)
    values = np.full(tensor.dims, np.nan, np.float32)
    tensor.ClearField("external_data")
    tensor.data_location = TensorProto.DEFAULT
    tensor.raw_data = onnx.numpy_helper.from_array(values.astype("bfloat16")).raw_data
    onnx.save(model, path)
    stages = {**copied.stages, "time": replace(copied.stages["time"], graph=file_spec(copied.folder, path))}
    replace(copied, stages=stages).write()
    with pytest.raises(CalibrationError, match=r"time:head\.time_embed.*NaN or infinite"):
        calibrate_weights(Bundle.open(copied.folder), tmp_path / "out", weights_options("int4"))


def test_options_that_need_runs_are_refused(linked_bf16: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    command = ["calibrate", str(linked_bf16.folder), "-o", str(tmp_path / "out"), "--weights-only", "--precision"]
    for given, said in (
        (["int4", "--smooth", "0.5"], "so --smooth would change nothing"),
        (["int4", "--encoder", "int8"], "encoder has no matrix"),
        (["int5"], "'int5'"),
        (["int4", "--images", "4", "--max-bit-flips", "1"], "--max-bit-flips, --images"),
    ):
        assert main([*command, *given]) != 0
        assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("precision", "target"), [("int4", "rtx:8.9"), ("fp8", "rtx:8.9"), ("nvfp4", "rtx:12.0")])
def test_engines_of_rounded_weights_build(linked_bf16: Bundle, tmp_path: Path, precision: str, target: str) -> None:
    calibrate_weights(linked_bf16, tmp_path / "out", weights_options(precision))
    made = Bundle.open(tmp_path / "out")
    kind = {"nvfp4": "fp4"}.get(precision, precision)
    assert kind in read_graph(made.folder / made.stages["head"].graph.path).types
    records = build(made, target, ["backbone", "head"])
    assert set(records) == {"backbone", "head"}


def taught(bundle: Bundle, images: int) -> dict:
    """Options of a calibration layer by layer on random bits."""
    model = bundle.model
    shape = (images, model.default_size.tokens, model.bits)
    bits = np.where(np.random.default_rng(3).random(shape) > 0.5, 1, -1).astype(np.int8)
    subjects = [0] if bundle.text is None else ["a red fish"]
    request = Request(steps=4, seed=1, output="tokens")
    return {"images": taught_images(bundle, bits, subjects, request, 1), "held_out": images - 1, "taught_by": "test"}


@pytest.mark.parametrize("precision", ["int8", "int4"])
@pytest.mark.parametrize("source", ["text", "classes"])
def test_layer_by_layer_gives_what_the_whole_stage_gives(
    linked_bf16: Bundle, exported: Callable[..., Bundle], tmp_path: Path, source: str, precision: str
) -> None:
    bundle = linked_bf16 if source == "text" else exported("cc_4x_patch")
    asked = taught(bundle, 2)
    for name, cut in (("cut", segments), ("whole", whole)):
        options = LayerOptions(recipe=recipe(precision), threads=1, cut=cut, **asked)
        found = calibrate_by_layer(bundle, tmp_path / name, options)
        assert set(found.errors) == set(found.formats)
    assert files(tmp_path / "cut") == files(tmp_path / "whole")
    scales = [(tmp_path / name / "calibration" / "scales.json").read_text() for name in ("cut", "whole")]
    assert scales[0] == scales[1]
    assert not list(tmp_path.glob(".*"))


def test_layer_by_layer_goes_on_where_it_stopped(
    linked_bf16: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = LayerOptions(recipe=recipe("int4"), threads=1, **taught(linked_bf16, 2))
    calibrate_by_layer(linked_bf16, tmp_path / "whole", options)
    encoded, asked = stage_file._write_unit, 0

    def stopping(*args: object) -> dict:
        nonlocal asked
        asked += 1
        if asked in (6, 14):
            raise Stop
        return encoded(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(stage_file, "_write_unit", stopping)
    for _ in range(2):
        with pytest.raises(Stop):
            calibrate_by_layer(linked_bf16, tmp_path / "out", options)
    found = calibrate_by_layer(linked_bf16, tmp_path / "out", options)
    assert files(tmp_path / "out") == files(tmp_path / "whole")
    assert set(found.errors) == set(found.formats)
