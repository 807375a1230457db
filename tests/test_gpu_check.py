"""The script for a GPU machine, as far as a CPU runs it: every part, on a small model."""

import json
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from gpu_fixtures import TEXT, Gpus
from onnx import TensorProto, helper

from bitdance_edge.runtime import Bundle, Pipeline
from bitdance_edge.runtime.backends.device import find_device

BENCH = Path(__file__).parents[1] / "bench" / "studies"


def check(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, str(BENCH / "gpu_check.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_every_part_runs_on_a_cpu(bundle: Bundle) -> None:
    folder = bundle.folder
    done = check(
        *("--device", "cpu", "--tokens", folder, "--speed", f"tiny={folder}", "--images", 2, "--steps", 2),
        "--no-compile",
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
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


def test_a_model_that_is_not_known_is_refused_at_once(bundle: Bundle) -> None:
    done = check("--device", "cpu", "--speed", f"no-such-model={bundle.folder}")
    assert done.returncode == 1
    assert "no-such-model is no model; it must be one of" in done.stderr


@pytest.mark.skipif(find_device() is not None, reason="this machine has a GPU")
def test_without_a_gpu_it_says_what_to_do(bundle: Bundle) -> None:
    done = check("--tokens", bundle.folder)
    assert done.returncode == 1
    assert "no NVIDIA driver answers on this machine; --device cpu" in done.stderr


@pytest.mark.parametrize("fixture", ["cc_4x_patch", TEXT])
def test_every_part_runs_with_engines(gpus: Gpus, fixture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over the GPU of ``fake_gpu``, whose times mean nothing."""
    monkeypatch.syspath_prepend(str(BENCH))
    import gpu_check  # type: ignore[import-not-found]
    from gpu_floors import Machine  # type: ignore[import-not-found]

    gpu = gpus(fixture)
    with Pipeline.open(gpu.bundle.folder) as pipeline:
        request = gpu_check.request_for(pipeline.bundle, 1, 2)
        patches = gpu_check.time_patches(pipeline, request)
        stages = list(gpu_check.time_stages(pipeline, request, Machine("fake", 1e9, 1e12, "float16")))
    assert patches["launches a patch"] == 1
    assert patches["host us a patch"] > 0
    assert len(stages) == 6
    assert gpu.alive["memory"] == gpu.alive["graphs"] == gpu.alive["lost"] == 0


def test_operations_are_those_of_the_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    from gpu_floors import Machine, StageCost, matrix_operations  # type: ignore[import-not-found]

    def value(name: str, *shape: int | str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["y"]),
        helper.make_node("Attention", ["q", "k", "k"], ["a"]),
        helper.make_node("Conv", ["i", "f"], ["o"]),
        helper.make_node("Relu", ["y"], ["z"]),
    ]
    inputs = [value("x", "R", 3, 8), value("w", 8, 5), value("q", "R", 2, 3, 4), value("k", "R", 2, 7, 4)]
    inputs += [value("i", 1, 6, 10, 10), value("f", 2, 6, 3, 3)]
    outputs = [value("z", "R", 3, 5), value("a", "R", 2, 3, 4), value("o", 1, 2, 10, 10)]
    graph = helper.make_graph(nodes, "products", inputs, outputs, value_info=[value("y", "R", 3, 5)])
    product, attention, convolution = 2 * 2 * 3 * 5 * 8, 4 * (2 * 2 * 3 * 4) * 7, 2 * (2 * 100) * (6 * 9)
    assert matrix_operations(graph, {"R": 2}) == product + attention + convolution
    machine = Machine("here", copy_bytes=1e9, matrix_operations=1e12, matrix_type="float16")
    assert StageCost(10**6, 10**6).floor_ms(machine) == pytest.approx(1.0)
    assert StageCost(10**6, 10**10).floor_ms(machine) == pytest.approx(10.0)
