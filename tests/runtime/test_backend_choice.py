"""Which backend is taken, what is said of the others, and what is refused by name."""

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gpu_fixtures import TARGET, Gpus

from bitdance_edge.runtime import BackendError, Bundle, Pipeline, Request
from bitdance_edge.runtime.backends import choice as backend_choice
from bitdance_edge.runtime.backends.device import Device, find_device
from bitdance_edge.runtime.bundle.record import record_path, target_folder


def test_without_a_gpu_the_cpu_is_taken_and_the_reasons_are_there(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(backend_choice, "find_device", lambda ordinal: None)
    with caplog.at_level(logging.INFO, "bitdance_edge"), Pipeline.open(bundle.folder) as pipeline:
        choice = pipeline.choice
    assert (choice.backend, choice.device) == ("onnxruntime-cpu", "cpu")
    assert set(choice.rejected) == {"tensorrt", "tensorrt_rtx", "onnxruntime-cuda"}
    assert all("no NVIDIA driver answers" in reason for reason in choice.rejected.values())
    assert "onnxruntime-cpu on cpu" in caplog.messages
    with pytest.raises(BackendError, match=r"no backend can run .*: tensorrt: no NVIDIA driver.*; tensorrt_rtx: no"):
        Pipeline.open(bundle.folder, device="cuda:1")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "gpu"}, r"device is 'gpu'; it must be 'auto', 'cpu', 'cpu:bf16', 'cuda' or 'cuda:N'"),
        ({"device": "cuda:x"}, r"device is 'cuda:x'"),
        ({"backend": "torch"}, r"backend is 'torch'; it must be one of tensorrt, tensorrt_rtx, onnxruntime-cuda"),
        ({"backend": "tensorrt", "device": "cpu"}, r"'tensorrt' does not run on device 'cpu'"),
        ({"backend": "tensorrt_rtx", "trace": "traces"}, r"writes no operator trace; use bitdance-edge profile"),
    ],
)
def test_names_are_checked(bundle: Bundle, options: dict[str, Any], message: str) -> None:
    with pytest.raises(BackendError, match=message):
        Pipeline.open(bundle.folder, **options)


def test_each_reason_names_the_next_command(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(backend_choice, "find_device", lambda ordinal: Device("Fake", "8.9"))
    reasons = "\n".join(backend_choice.survey(bundle))
    assert "tensorrt: no: tensorrt cannot be imported" in reasons
    assert "tensorrt_rtx: no: PyCUDA cannot be imported" in reasons
    assert re.search(r"CUDA_ROOT=/usr/local/cuda pip install '.*\[cuda\]'", reasons)
    assert "onnxruntime-cuda: no: the onnxruntime that is installed is for the CPU: pip uninstall" in reasons
    assert "onnxruntime-cpu: yes, on cpu" in reasons


def test_engines_that_do_not_fit_are_passed_over_with_the_reason(gpus: Gpus, exported: Callable[..., Bundle]) -> None:
    gpu = gpus()
    record = record_path(target_folder(gpu.bundle, TARGET), "head")
    record.write_text(record.read_text().replace('"8.9"', '"12.0"'))
    with Pipeline.open(gpu.bundle.folder) as pipeline:
        assert pipeline.choice.backend == "onnxruntime-cpu"
        reason = pipeline.choice.rejected["tensorrt"]
    assert "head.engine: it was built for compute capability 12.0, and this GPU has 8.9" in reason
    assert f"bitdance-edge build {gpu.bundle.folder} --target trt:current" in reason
    record.unlink()
    with pytest.raises(BackendError, match=r"head\.json is missing, so nothing says what the build beside it is"):
        Pipeline.open(gpu.bundle.folder, backend="tensorrt")
    assert not gpu.retained


def test_a_trace_is_onnx_runtimes(gpus: Gpus, tmp_path: Path) -> None:
    with Pipeline.open(gpus().bundle.folder, trace=tmp_path) as pipeline:
        assert pipeline.choice.backend == "onnxruntime-cpu"
        pipeline.generate(Request(classes=[1], steps=1))
    assert len(list(tmp_path.glob("head*.json"))) == 1


@pytest.mark.skipif(find_device() is None, reason="no NVIDIA driver answers on this machine")
def test_the_backends_of_this_gpu_give_the_tokens_of_the_cpu(bundle: Bundle) -> None:
    request = Request(classes=[3, 7], seed=5, steps=5, output="tokens")
    with Pipeline.open(bundle.folder, device="cpu") as pipeline:
        wanted = pipeline.generate(request)
    ran = 0
    for name in backend_choice.ON_GPU:
        try:
            pipeline = Pipeline.open(bundle.folder, backend=name)
        except BackendError:
            continue
        with pipeline:
            found = pipeline.generate(request)
        bits = [(one.tokens != other.tokens).mean() for one, other in zip(found, wanted, strict=True)]
        assert max(bits) < 0.01, name
        ran += 1
    if not ran:
        pytest.skip("no GPU backend is installed beside the driver")
