"""The script for a GPU machine, as far as a CPU runs it: every part, on a small model."""

import importlib
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from gpu_fixtures import TEXT, Gpus

from bitdance_edge.model import BitDance, load_generator
from bitdance_edge.runtime import Bundle, Pipeline, Request
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


def exported_model() -> BitDance:
    """The model that ``bundle`` was exported from."""
    return load_generator(Path(__file__).parent / "fixtures" / "cc_4x_patch" / "state.safetensors").eval()


def test_every_part_runs_on_a_cpu(
    check: Callable[..., None], bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gpu_reference  # type: ignore[import-not-found]

    folder, found = bundle.folder, tmp_path / "found.json"
    monkeypatch.setattr(gpu_reference, "random_model", lambda name, device, dtype: exported_model())
    check(
        *("--device", "cpu", "--tokens", folder, "--speed", f"tiny={folder}", "--images", 2, "--steps", 2),
        *("--batches", "1,2", "--patches", 3, "--json", found),
    )
    report = json.loads(found.read_text(encoding="utf-8"))
    assert report["failures"] == []
    assert report["tokens"][0]["the same"] == 2
    assert report["machine"]["copy_bytes"] > 0
    stages = {row["stage"]: row for row in report["stages"] if row["backend"] == "onnxruntime-cpu"}
    assert set(stages) == {
        "backbone (prompt)",
        "backbone (patch)",
        "modulation",
        "head",
        "tokens",
        "decoder, with copies",
    }
    assert all(row["floor ms"] > 0 and row["ms"] > 0 for row in stages.values())
    backends = ["onnxruntime-cpu", "PyTorch, eager", "PyTorch, captured"]
    assert [(row["backend"], row["images"]) for row in report["patches"]] == [(b, i) for b in backends for i in (1, 2)]
    assert report["patches"][0]["launches a patch"] == 3 + 3  # backbone, modulation, head at three times, tokens
    ours, other = report["speed"]
    assert (ours["images"], other["images"]) == (1, 2)
    eager = report["patches"][2]["ms a patch"]
    assert ours["x eager"] == pytest.approx(eager / report["patches"][0]["ms a patch"])


def test_a_part_that_fails_costs_that_part_only(
    study: ModuleType, check: Callable[..., None], bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was known before it is written, and what follows still runs."""
    found, timing = tmp_path / "found.json", importlib.import_module("gpu_timing")
    measured = timing.launch_ms

    def launch_ms(*arguments: Any) -> float:
        launch_ms.calls += 1  # type: ignore[attr-defined]
        if launch_ms.calls == 2:  # type: ignore[attr-defined]
            raise RuntimeError("out of luck")
        return measured(*arguments)

    launch_ms.calls = 0  # type: ignore[attr-defined]
    monkeypatch.setattr(timing, "launch_ms", launch_ms)
    check("--device", "cpu", "--speed", f"tiny={bundle.folder}", "--steps", 1, "--no-reference", "--json", found)
    report = json.loads(found.read_text(encoding="utf-8"))
    assert [row["stage"] for row in report["stages"]] == [
        "backbone (prompt)",
        "modulation",
        "head",
        "tokens",
        "decoder, with copies",
    ]
    (failure,) = report["failures"]
    assert failure["part"].startswith("backbone (patch)")
    assert failure["reason"] == "RuntimeError: out of luck"


def test_the_ceiling_generates_the_tokens_of_the_bundle(study: ModuleType, bundle: Bundle) -> None:
    """PyTorch behind the runtime's loop, with the weights that the bundle was exported from."""
    from gpu_ceiling import torch_pipeline  # type: ignore[import-not-found]

    request = Request(classes=[1, 2], steps=3, seed=1, output="tokens")
    with torch_pipeline(bundle, exported_model(), 2) as pipeline:
        found = pipeline.generate(request)
    with Pipeline.open(bundle.folder, device="cpu") as pipeline:
        wanted = pipeline.generate(request)
    assert all((one.tokens == other.tokens).all() for one, other in zip(found, wanted, strict=True))


def test_weights_that_stayed_behind_are_replaced_by_random_ones(
    study: ModuleType, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import random_weights  # type: ignore[import-not-found]

    monkeypatch.setattr(random_weights, "LARGE", 1)
    folder = Path(shutil.copytree(bundle.folder, tmp_path / "bundle"))
    random_weights.strip(folder)
    assert not list(folder.rglob("*.data"))
    random_weights.fill(folder)
    with Pipeline.open(folder, device="cpu") as pipeline:
        (image,) = pipeline.generate(Request(classes=[1], steps=1, output="tokens"))
    assert image.tokens.size


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
    timing = importlib.import_module("gpu_timing")
    monkeypatch.setattr(timing, "ROUNDS", 1)
    monkeypatch.setattr(timing, "REPEATS", 2)
    from gpu_floors import Machine  # type: ignore[import-not-found]
    from gpu_report import Failures  # type: ignore[import-not-found]

    gpu = gpus(fixture)
    with Pipeline.open(gpu.bundle.folder) as pipeline:
        request = study.request_for(pipeline.bundle, 1, 2)
        patches = study.time_patches(pipeline, request)
        stages = list(study.time_stages(pipeline, request, Machine("fake", 1e9, 1e12, "float16"), Failures()))
    assert patches["launches a patch"] == 1
    assert patches["host us a patch"] > 0
    assert len(stages) == 6
    assert gpu.alive["memory"] == gpu.alive["graphs"] == gpu.alive["lost"] == 0


def test_a_floor_is_set_by_bytes_or_by_operations(study: ModuleType) -> None:
    from gpu_floors import Machine, StageCost  # type: ignore[import-not-found]

    machine = Machine("here", copy_bytes=1e9, matrix_operations=1e12, matrix_type="float16")
    assert StageCost(10**6, 10**6).floor_ms(machine) == pytest.approx(1.0)
    assert StageCost(10**6, 10**10).floor_ms(machine) == pytest.approx(10.0)
