"""``bitdance-edge build`` as a user meets it."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from bitdance_edge.cli import main
from bitdance_edge.engines.engine_form import EngineForm
from bitdance_edge.runtime import BuildError, Bundle
from bitdance_edge.runtime.backends.tensorrt_library import Library
from bitdance_edge.runtime.bundle.record import BuildRecord, record_path, target_folder


def test_build_says_what_it_does_and_does_it_once(built_copy: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    build = ["build", str(built_copy.folder), "--target", "rtx:8.9,12.0", "--stages", "time,tokens"]
    engine = built_copy.folder / "targets" / "rtx-8.9-12.0" / "time.engine"
    assert main([*build, "--dry-run"]) == 0
    assert "ONNX MB" in capsys.readouterr().out
    assert not engine.parent.exists()
    assert main(build) == 0
    output, notes = capsys.readouterr()
    assert "not checked against the bundle's own graphs: no NVIDIA driver answers here" in output
    assert f"bitdance-edge inspect {built_copy.folder}" in notes
    written = engine.stat().st_mtime_ns
    assert main(build) == 0
    assert "everything is up to date; --force builds it again" in capsys.readouterr().out
    assert engine.stat().st_mtime_ns == written
    assert main([*build, "--force"]) == 0
    assert engine.stat().st_mtime_ns != written


def test_refusals_are_one_line(digits: Callable[[str], Bundle], capsys: pytest.CaptureFixture[str]) -> None:
    bundle = str(digits("fp8").folder)
    assert main(["build", bundle, "--target", "rtx:8.6"]) == 1
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert "fp8 needs compute capability 8.9, not 8.6" in captured.err
    assert "refused: fp8" in captured.out
    assert main(["build", bundle, "--target", "rtx:9.0"]) == 1
    assert "TensorRT-RTX builds for 7.5 (RTX 20, T4)" in capsys.readouterr().err


def test_weights_are_streamed_or_replaceable_where_that_is_asked_for(
    built_copy: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    build = ["build", str(built_copy.folder), "--target", "rtx:8.9", "--stages", "time"]
    folder = target_folder(built_copy, "rtx:8.9")
    records = []
    for options in (["--stream-weights"], ["--refittable"], ["--stream-weights", "--refittable"], []):
        assert main([*build, *options]) == 0
        records.append(BuildRecord.read(record_path(folder, "time")))
    found, both = [record.options for record in records], records[2]
    assert [record.get("weight_streaming", False) for record in found] == [True, False, True, False]
    assert [record.get("refittable", False) for record in found] == [False, True, True, False]
    assert [record["user_allocation"] for record in found] == [False, True, False, True]
    assert "--stream-weights --refittable --force" in both.rebuild_command(built_copy)
    capsys.readouterr()
    assert main(["build", str(built_copy.folder), "--target", "cpu", "--stream-weights"]) == 1
    assert "whose builds are graphs" in capsys.readouterr().err


def test_what_a_library_cannot_is_refused() -> None:
    module: Any = SimpleNamespace(__version__="10.0", BuilderFlag=SimpleNamespace())
    library = Library("tensorrt", module, None)
    with pytest.raises(BuildError, match=r"tensorrt 10\.0 has no BuilderFlag\.WEIGHT_STREAMING.*--stream-weights"):
        EngineForm(streamed=True).require(library)
    EngineForm().require(library)
