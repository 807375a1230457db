"""A build is compared with the bundle's own stage before it is put in place."""

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from building import build
from engine_fixtures import CHECKPOINT
from onnx import numpy_helper

from bitdance_edge.cli import main
from bitdance_edge.engines import check as checking
from bitdance_edge.engines.check import relative_error
from bitdance_edge.engines.failure import BuildFailure
from bitdance_edge.engines.progress import BuildWatch
from bitdance_edge.engines.targets.cpu import CpuTarget
from bitdance_edge.engines.targets.interface import Built, Job
from bitdance_edge.runtime import Bundle
from bitdance_edge.runtime.bundle.record import target_folder


@pytest.fixture
def unbuilt(exported: Callable[..., Bundle], tmp_path: Path) -> Bundle:
    folder = shutil.copytree(
        exported("cc_4x_patch").folder, tmp_path / "bundle", ignore=shutil.ignore_patterns("targets")
    )
    return Bundle.open(folder)


def spoil(monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], object]) -> None:
    """Have the cpu target write a wrong graph."""
    build_rightly = CpuTarget.build

    def build_wrongly(target: CpuTarget, job: Job, folder: Path, watch: BuildWatch) -> Built:
        built = build_rightly(target, job, folder, watch)
        change(Path(built.files[0]))
        return built

    monkeypatch.setattr(CpuTarget, "build", build_wrongly)


def scaled(factor: float) -> Callable[[Path], None]:
    """Scale the largest weight of a graph."""

    def change(path: Path) -> None:
        model = onnx.load(path)
        largest = max(
            (tensor for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT),
            key=lambda tensor: int(np.prod(tensor.dims)),
        )
        values = (numpy_helper.to_array(largest) * factor).astype(np.float32)
        largest.CopyFrom(numpy_helper.from_array(values, largest.name))
        path.with_name(f"{path.name}.data").unlink()
        onnx.save(model, path, save_as_external_data=True, location=f"{path.name}.data")

    return change


@pytest.mark.parametrize("stage", ["head", "decoder"])
@pytest.mark.parametrize("factor", [1.2, float("nan")])
def test_a_build_whose_output_differs_is_refused(
    unbuilt: Bundle, stage: str, factor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, scaled(factor))
    with pytest.raises(BuildFailure, match=rf"{stage}: what onnxruntime built differs from the bundle's own stage by"):
        build(unbuilt, "cpu", [stage])
    assert not target_folder(unbuilt, "cpu").exists()


def test_a_build_that_does_not_load_is_refused(unbuilt: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, lambda path: path.write_bytes(b"not a graph"))
    with pytest.raises(BuildFailure, match=r"ONNX Runtime [\d.]+ refuses time\.onnx"):
        build(unbuilt, "cpu", ["time"])
    assert not target_folder(unbuilt, "cpu").exists()


def test_without_memory_for_the_bundle_a_build_is_not_checked(
    unbuilt: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(checking, "available_memory", lambda: 1000)
    assert main(["build", str(unbuilt.folder), "--target", "cpu", "--stages", "time"]) == 0
    output = capsys.readouterr().out
    assert "not run here" in output
    assert "not checked against the bundle's own graphs: running the bundle takes up to" in output
    assert "0 MB are available" in output
    assert main(["inspect", str(target_folder(unbuilt, "cpu") / "time.onnx")]) == 0
    assert "not run where it was built" in capsys.readouterr().out


def test_inputs_are_recorded_once_for_all_stages(unbuilt: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded, record_samples = [], checking.record_samples
    monkeypatch.setattr(checking, "record_samples", lambda bundle: recorded.append(bundle) or record_samples(bundle))
    records = build(unbuilt, "cpu", ["time", "tokens", "head"])
    assert len(recorded) == 1
    assert all(record.error is not None and record.error <= record.tolerance for record in records.values())


def test_tolerances_follow_stage_and_precision() -> None:
    def tolerance(stage: str, precision: str, *types: str, max_error: float | None = None) -> float:
        bundle = SimpleNamespace(stage=lambda name: SimpleNamespace(precision=precision, max_error=max_error))
        job = SimpleNamespace(bundle=bundle, stage=stage, facts=SimpleNamespace(types=frozenset(types)))
        return checking.tolerance(job)  # type: ignore[arg-type]

    assert tolerance("head", "fp32") < tolerance("head", "fp16") < tolerance("head", "bf16")
    assert tolerance("decoder", "fp32") == 1 / 255
    assert tolerance("encoder", "fp32") == 0.01
    assert tolerance("head", "int8", "int8", "fp32") == tolerance("head", "int4", "int4", "fp32")
    assert tolerance("head", "int8", "int8", "fp32") < tolerance("head", "int8", "int8", "fp16")
    # Two correct builds of a quantised stage may differ by what quantising it changed, and no more.
    assert tolerance("decoder", "int8", "int8", "fp32", max_error=0.2) == 0.2
    assert tolerance("decoder", "int8", "int8", "fp32", max_error=1e-4) == tolerance("decoder", "int8", "int8", "fp32")
    assert tolerance("decoder", "fp32", max_error=0.2) == 1 / 255


def test_relative_error() -> None:
    want = np.array([1.0, -4.0], np.float32)
    assert relative_error(want, want) == 0
    assert relative_error(want, np.array([1.0, -3.0], np.float32)) == 0.25
    assert relative_error(want, np.array([1.0, np.nan], np.float32)) == float("inf")
    assert relative_error(want, np.array([1.0], np.float32)) == float("inf")
    assert relative_error(np.array([0], np.uint8), np.array([51], np.uint8)) == 0.2
    assert relative_error(np.zeros(2), np.zeros(2)) == 0


def test_inspect_shows_what_was_built(unbuilt: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(unbuilt.folder)]) == 0
    assert f"nothing yet; for this processor: bitdance-edge build {unbuilt.folder} --target cpu" in (
        capsys.readouterr().out
    )
    build(unbuilt, "cpu", ["time", "head"])
    build(unbuilt, "cuda", ["decoder"])
    assert main(["inspect", str(unbuilt.folder)]) == 0
    output = capsys.readouterr().out
    assert "cpu with onnxruntime" in output
    assert ": head, time, " in output
    assert "cuda with onnxruntime" in output
    assert main(["inspect", str(target_folder(unbuilt, "cpu") / "head.onnx")]) == 0
    output = capsys.readouterr().out
    for expected in ("head for cpu, built with onnxruntime", "images at once    any number", "whole: size and SHA-256"):
        assert expected in output
    assert f"from              {unbuilt.stage('head').graph.path}  SHA-256" in output


def test_compare_runs_what_was_built(
    digits: Callable[[str], Bundle], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(digits("fp32").folder, tmp_path / "copy", ignore=shutil.ignore_patterns("targets"))
    bundle = Bundle.open(folder)
    command = ["compare", str(folder), "--target", "cpu", "--stages", "head,decoder"]
    assert main(command) == 0
    assert (
        f"cpu omitted: nothing was built for cpu: bitdance-edge build {folder} --target cpu" in capsys.readouterr().out
    )
    build(bundle, "cpu", ["head", "decoder"])
    assert main([*command, "--checkpoint", str(CHECKPOINT)]) == 0
    output = capsys.readouterr().out
    assert output.count("pytorch - onnxruntime") == 2
    assert output.count("onnxruntime - cpu") == 2
    assert "DIFFERENT" not in output
    weights = target_folder(bundle, "cpu") / "head.onnx.data"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert main(command) == 0
    assert "cpu omitted: head.onnx.data has" in capsys.readouterr().out
