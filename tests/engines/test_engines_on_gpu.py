"""compare and profile with engines, over the GPU of ``fake_gpu``: the backbone is among them, its cache in place."""

import shutil

import fake_tensorrt
import numpy as np
import pytest
from building import build
from gpu_fixtures import TARGET, Gpus

from bitdance_edge.cli import main
from bitdance_edge.engines import engine_run
from bitdance_edge.engines.engine_run import EngineRun, open_engines
from bitdance_edge.engines.failure import BuildFailure
from bitdance_edge.engines.graph import read_graph
from bitdance_edge.engines.reports.layer_profiler import RUNS, profile_engine
from bitdance_edge.engines.samples import record_samples
from bitdance_edge.engines.targets import tensorrt
from bitdance_edge.runtime import BackendError
from bitdance_edge.runtime.backends import choice
from bitdance_edge.runtime.backends.device import Device
from bitdance_edge.runtime.bundle.record import BuildRecord, record_path, target_folder


@pytest.fixture
def on_fake(gpus: Gpus, monkeypatch: pytest.MonkeyPatch) -> Gpus:
    for module in (engine_run, tensorrt):
        monkeypatch.setattr(module, "find_device", lambda: Device("Fake", "8.9"))
        monkeypatch.setattr(module, "load_library", lambda name: choice.load_library(name))
    return gpus


def test_the_backbone_is_compared_with_its_cache(on_fake: Gpus, capsys: pytest.CaptureFixture[str]) -> None:
    gpu = on_fake()
    arguments = ["compare", str(gpu.bundle.folder), "--target", "trt:current", "--stages", "backbone,head,decoder"]
    assert main(arguments) == 0
    output = capsys.readouterr().out
    assert output.count("onnxruntime - trt:current") == 4  # the backbone for its prompt and for a patch
    assert "trt:current omitted" not in output
    assert "DIFFERENT" not in output
    assert not gpu.memory


def test_a_build_is_checked_on_this_gpu(on_fake: Gpus, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = on_fake(implicit_context=True)
    folder = target_folder(gpu.bundle, TARGET)
    shutil.rmtree(folder)
    made = build(gpu.bundle, TARGET)
    assert made.keys() == gpu.bundle.stages.keys()
    for stage, record in made.items():
        assert record.error is not None, stage
        assert record.error <= record.tolerance
        assert (record.devices, record.built_on) == (("8.9",), "Fake")
        assert record.options["in_place_cache"] == (stage == "backbone")
        assert BuildRecord.read(record_path(folder, stage)) == record
    assert made["backbone"].layers == {"KV_CACHE_UPDATE": {"FLOAT": 2 * gpu.bundle.cache.layers}}
    assert not gpu.memory
    compute = fake_tensorrt.compute
    monkeypatch.setattr(fake_tensorrt, "compute", lambda *args: [2 * values for values in compute(*args)])
    with pytest.raises(BuildFailure, match="head: what tensorrt built differs from the bundle's own stage by"):
        build(gpu.bundle, TARGET, ["head"])
    assert BuildRecord.read(record_path(folder, "head")) == made["head"]  # the build of before stays
    assert not gpu.memory


def test_an_engine_leaves_its_cache_where_it_was(on_fake: Gpus) -> None:
    gpu = on_fake()
    inputs = record_samples(gpu.bundle)["backbone", "patch"]
    backend = open_engines(gpu.bundle, target_folder(gpu.bundle, TARGET), "tensorrt")
    with backend.current():
        run = EngineRun.bind(backend.load("backbone"), inputs)
        run.launch()
        after = run.buffers["present.0.key"].read()
    at = int(inputs["cache_position"][0])
    assert np.array_equal(after[:, :, :at], inputs["past_key_values.0.key"][:, :, :at])
    assert after[:, :, at : at + gpu.bundle.model.tokens_per_step].any()
    backend.close()
    assert not gpu.memory


def test_layers_are_timed_from_python(on_fake: Gpus) -> None:
    gpu = on_fake()
    inputs = record_samples(gpu.bundle)["head", "all"]
    backend = open_engines(gpu.bundle, target_folder(gpu.bundle, TARGET), "tensorrt")
    facts = read_graph(gpu.bundle.folder / gpu.bundle.stage("head").graph.path)
    gpu.log.clear()
    layers = profile_engine(backend, "head", inputs, facts)
    backend.close()
    assert [(layer.name, layer.milliseconds) for layer in layers] == [("first layer", 0.5), ("second layer", 0.5)]
    assert gpu.log.count("run head") > RUNS


def test_profile_runs_engines_where_the_program_is_missing(
    on_fake: Gpus, tmp_path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gpu = on_fake()
    monkeypatch.setenv("PATH", "")
    assert main(["profile", str(gpu.bundle.folder), "--target", "trt:current", "--out", str(tmp_path)]) == 0
    output = capsys.readouterr().out
    assert "backbone (patch): 1.0000 ms in 2 layers" in output
    assert (tmp_path / "backbone-patch.png").is_file()
    assert not gpu.memory


def test_without_a_gpu_there_are_no_engines(gpus: Gpus, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = gpus()
    monkeypatch.setattr(engine_run, "find_device", lambda: None)
    with pytest.raises(BackendError, match="no NVIDIA driver answers here"):
        open_engines(gpu.bundle, target_folder(gpu.bundle, TARGET), "tensorrt")
