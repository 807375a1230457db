"""Ctrl-C and SIGTERM in calibrate, build and bench: one line, status 130; what is left is what they go on from."""

import json
import shutil
import signal
from pathlib import Path

import pytest
from places import FIXTURES
from test_cli import files, interrupt

from bitdance_edge.runtime import Bundle

CHECKPOINT = FIXTURES / "cc_4x_patch" / "state.safetensors"
STOPS = [signal.SIGINT, signal.SIGTERM]


@pytest.fixture
def copied(bundle: Bundle, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle.folder, tmp_path / "bundle"))


def require_one_line(status: int, said: str, command: str) -> None:
    assert status == 130, said
    assert said.rstrip().splitlines()[-1].startswith(f"bitdance-edge {command}: interrupted"), said
    assert "Traceback" not in said


@pytest.mark.parametrize("stop", STOPS)
def test_calibrate_keeps_its_recordings(copied: Path, tmp_path: Path, stop: signal.Signals) -> None:
    before = files(tmp_path)
    arguments = ["calibrate", copied, "--precision", "int8", "-o", tmp_path / "out", "--images", 64]
    status, said = interrupt(arguments, copied / "calibration" / "recordings", stop)
    require_one_line(status, said, "calibrate")
    assert all(name.startswith("bundle/calibration") for name in files(tmp_path) - before)


@pytest.mark.parametrize("stop", STOPS)
def test_build_leaves_whole_stages(copied: Path, tmp_path: Path, stop: signal.Signals) -> None:
    before = files(tmp_path)
    status, said = interrupt(["build", copied, "--target", "cpu"], copied / "targets", stop)
    require_one_line(status, said, "build")
    made = {Path(name) for name in files(tmp_path) - before if (tmp_path / name).is_file()}
    assert all(path.is_relative_to("bundle/targets/cpu") and not path.name.startswith(".") for path in made)
    Bundle.open(copied)


@pytest.mark.parametrize("stop", STOPS)
def test_bench_keeps_whole_runs(copied: Path, tmp_path: Path, stop: signal.Signals) -> None:
    before = files(tmp_path)
    arguments = ["bench", copied, "--checkpoint", CHECKPOINT, "-o", tmp_path / "out"]
    status, said = interrupt(arguments, tmp_path / "out" / "runs", stop)
    require_one_line(status, said, "bench")
    left = files(tmp_path) - before - {"out", "out/comparison.json"}  # what is compared
    assert all(name.startswith("out/runs") for name in left), left
    json.loads((tmp_path / "out" / "comparison.json").read_text(encoding="utf-8"))
