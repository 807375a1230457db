"""The script for a GPU machine, as far as a CPU runs it: every part, on a small model."""

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from gpu_fixtures import TEXT, Gpus

from bitdance_edge.runtime import Bundle, Pipeline
from bitdance_edge.runtime.backends.device import find_device

STUDIES = Path(__file__).parents[1] / "bench" / "studies"


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module; it imports its neighbours by file name."""
    monkeypatch.syspath_prepend(str(STUDIES))
    return importlib.import_module("gpu_check")


@pytest.fixture
def check(study: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """``check("--device", "cpu")`` runs the script in this process."""

    def run(*arguments: object) -> None:
        monkeypatch.setattr(sys, "argv", ["gpu_check.py", *map(str, arguments)])
        study.main()

    return run


def test_every_part_runs_on_a_cpu(
    check: Callable[..., None], bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = bundle.folder
    check(
        *("--device", "cpu", "--tokens", folder, "--speed", f"tiny={folder}", "--images", 2, "--steps", 2),
        "--no-compile",
    )
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["failures"] == []
    assert report["tokens"][0]["the same"] == 2
    assert report["machine"]["copy_bytes"] > 0
    stages = {row["stage"]: row for row in report["stages"]}
    assert set(stages) == {
        "backbone (prompt)",
        "backbone (patch)",
        "modulation",
        "head",
        "tokens",
        "decoder, with copies",
    }
    assert all(row["floor ms"] > 0 and row["ms"] > 0 for row in stages.values())
    ours, eager = report["patches"]
    assert ours["launches a patch"] == 3 + 3  # backbone, modulation, head at each of three times, tokens
    assert eager["backend"] == "PyTorch, eager"
    assert ours["x eager"] == pytest.approx(eager["s an image"] / ours["s an image"])


def test_an_unknown_model_is_refused_at_once(check: Callable[..., None], bundle: Bundle) -> None:
    with pytest.raises(SystemExit, match="no-such-model is no model; it must be one of"):
        check("--device", "cpu", "--speed", f"no-such-model={bundle.folder}")


@pytest.mark.skipif(find_device() is not None, reason="this machine has a GPU")
def test_without_a_gpu_it_says_what_to_do(check: Callable[..., None], bundle: Bundle) -> None:
    with pytest.raises(SystemExit, match="no NVIDIA driver answers on this machine; --device cpu"):
        check("--tokens", bundle.folder)


@pytest.mark.parametrize("fixture", ["cc_4x_patch", TEXT])
def test_every_part_runs_with_engines(
    study: ModuleType, gpus: Gpus, fixture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over the GPU of ``fake_gpu``, whose times mean nothing."""
    monkeypatch.setattr(study, "ROUNDS", 1)
    monkeypatch.setattr(study, "REPEATS", 2)
    from gpu_floors import Machine  # type: ignore[import-not-found]

    gpu = gpus(fixture)
    with Pipeline.open(gpu.bundle.folder) as pipeline:
        request = study.request_for(pipeline.bundle, 1, 2)
        patches = study.time_patches(pipeline, request)
        stages = list(study.time_stages(pipeline, request, Machine("fake", 1e9, 1e12, "float16")))
    assert patches["launches a patch"] == 1
    assert patches["host us a patch"] > 0
    assert len(stages) == 6
    assert gpu.alive["memory"] == gpu.alive["graphs"] == gpu.alive["lost"] == 0


def test_a_floor_is_set_by_bytes_or_by_operations(study: ModuleType) -> None:
    from gpu_floors import Machine, StageCost  # type: ignore[import-not-found]

    machine = Machine("here", copy_bytes=1e9, matrix_operations=1e12, matrix_type="float16")
    assert StageCost(10**6, 10**6).floor_ms(machine) == pytest.approx(1.0)
    assert StageCost(10**6, 10**10).floor_ms(machine) == pytest.approx(10.0)
