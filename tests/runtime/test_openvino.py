"""OpenVINO in bfloat16: taken where it is asked for, nearly the same images, what is given stays exact."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bitdance_edge.runtime import BackendError, Bundle, BundleError, Pipeline, Request
from bitdance_edge.runtime.backends import openvino as backend
from bitdance_edge.runtime.backends.openvino import OpenVinoBackend, OpenVinoStage
from bitdance_edge.runtime.bundle.stage_names import StageName

BFLOAT16 = "cpu:bf16"
STEPS = 4
# Trained, so that few predictions are next to zero: 2 % of the bits flip with all weights in 4 bits too.
MOST_FLIPS = 0.02


# Frees what loaded first first, then interrupts itself.
INTERRUPTED = """
import signal, sys
from bitdance_edge.runtime import Bundle
from bitdance_edge.runtime.backends.openvino import OpenVinoBackend
signal.signal(signal.SIGINT, lambda *_: print("handled"))
first, second = (OpenVinoBackend(Bundle.open(sys.argv[1]), 1) for _ in range(2))
first.load("head"), second.load("head")
del first
del second
signal.raise_signal(signal.SIGINT)
"""


def multiplies_in_bfloat16() -> bool:
    try:
        backend.require_bfloat16()
    except BackendError:
        return False
    return True


runs = pytest.mark.skipif(not multiplies_in_bfloat16(), reason="OpenVINO is missing, or the processor has no bfloat16")


def tokens(bundle: Bundle, device: str, **fields: Any) -> np.ndarray:
    asked = {"seed": 1, "count": 2, "steps": STEPS, "output": "tokens", **fields}
    with Pipeline.open(bundle.folder, device=device, threads=1) as pipeline:
        images = pipeline.generate(replace(Request.example(bundle), **asked))
    return np.stack([image.tokens for image in images])


@runs
def test_it_is_taken_where_it_is_asked_for_alone(bundle: Bundle) -> None:
    for device, name in ((BFLOAT16, None), ("auto", "openvino")):
        with Pipeline.open(bundle.folder, device=device, backend=name) as pipeline:
            assert (pipeline.choice.backend, pipeline.choice.device) == ("openvino", "cpu")
            assert "products of backbone, modulation, head, decoder in bfloat16" in pipeline.choice.arithmetic
    for device in ("auto", "cpu"):
        with Pipeline.open(bundle.folder, device=device) as pipeline:
            assert pipeline.choice.backend == "onnxruntime-cpu"
    with pytest.raises(BackendError, match="'openvino' does not run on device 'cpu'"):
        Pipeline.open(bundle.folder, device="cpu", backend="openvino")
    with pytest.raises(BackendError, match="cpu:bf16 writes no operator trace; use the device cpu"):
        Pipeline.open(bundle.folder, device=BFLOAT16, trace="traces")


@runs
@pytest.mark.parametrize("fields", [{}, {"guidance": 1.0}, {"sampler": "ode"}], ids=["guided", "unguided", "ode"])
def test_few_bits_flip_and_a_seed_is_an_image(digits: Callable[[str], Bundle], fields: dict[str, Any]) -> None:
    bundle = digits("fp32")
    found, want = tokens(bundle, BFLOAT16, **fields), tokens(bundle, "cpu", **fields)
    first = slice(0, bundle.model.tokens_per_step)  # later patches are sampled on top of what has flipped
    assert np.mean(found[:, first] != want[:, first]) <= MOST_FLIPS
    np.testing.assert_array_equal(found, tokens(bundle, BFLOAT16, **fields))


@runs
def test_images_are_nearly_those_of_float32(digits: Callable[[str], Bundle]) -> None:
    bundle = digits("fp32")
    drawn = tokens(bundle, "cpu")
    with Pipeline.open(bundle.folder, device=BFLOAT16) as pipeline, Pipeline.open(bundle.folder, device="cpu") as plain:
        found, want = pipeline.decode(drawn).astype(int), plain.decode(drawn).astype(int)
        np.testing.assert_array_equal(pipeline.tokenize(plain.decode(drawn)), plain.tokenize(plain.decode(drawn)))
    assert 0 < np.abs(found - want).mean() < 1  # of 255 levels


@runs
def test_what_an_edit_holds_stays_exact(digits: Callable[[str], Bundle]) -> None:
    bundle = digits("fp32")
    init, size = tokens(bundle, "cpu", count=1)[0], bundle.model.default_size
    mask = np.zeros((size.height // 4, size.width // 4), bool)
    mask[2:6, 2:6] = True
    for window in (1, 3):
        found = tokens(bundle, BFLOAT16, init=init, mask=mask, count=1, window=window, seed=7)[0]
        with Pipeline.open(bundle.folder, device="cpu") as pipeline:
            asked = replace(Request.example(bundle), init=init, mask=mask, count=1, seed=7)
            held = asked.resolve(pipeline.bundle).given.held.reshape(-1)
        np.testing.assert_array_equal(found[held], init[held])
        assert (found != init).any()


@runs
def test_windows_settle_where_one_evaluation_after_the_other_ends(digits: Callable[[str], Bundle]) -> None:
    bundle = digits("fp32")
    alone, together = (tokens(bundle, BFLOAT16, steps=20, window=window) for window in (1, 4))
    first = slice(0, bundle.model.tokens_per_step)
    assert np.mean(alone[:, first] != together[:, first]) <= MOST_FLIPS


@runs
@pytest.mark.parametrize("opset", [20, 24])
def test_a_stage_with_an_operator_that_openvino_lacks_runs_in_onnxruntime(
    exported: Callable[..., Bundle], opset: int
) -> None:
    opened = OpenVinoBackend(exported("cc_4x_patch", opset), 1)
    in_openvino = {stage for stage in opened.bundle.stages if isinstance(opened.load(stage), OpenVinoStage)}
    faster = {StageName.MODULATION, StageName.HEAD, StageName.DECODER}
    assert in_openvino == faster | ({StageName.BACKBONE} if opset == 20 else set())
    assert tokens(opened.bundle, BFLOAT16).shape == tokens(opened.bundle, "cpu").shape


@runs
def test_a_manifest_that_says_otherwise_is_refused(bundle: Bundle) -> None:
    head = bundle.stage(StageName.HEAD)
    for change in ({"dtype": "float16"}, {"shape": ("R", 5, 5)}, {"name": "other"}):
        lying = replace(head, inputs=(replace(head.inputs[0], **change), *head.inputs[1:]))
        opened = OpenVinoBackend(replace(bundle, stages={**bundle.stages, StageName.HEAD: lying}), 1)
        with pytest.raises(BundleError, match=r"head\.onnx.*copy or export it again"):
            opened.load(StageName.HEAD)


@runs
def test_without_a_float32_stage_there_is_nothing_to_gain(bundle: Bundle) -> None:
    stages = {name: replace(stage, precision="int8") for name, stage in bundle.stages.items()}
    with pytest.raises(BackendError, match="no float32 stage that OpenVINO would run in bfloat16: run it on"):
        OpenVinoBackend(replace(bundle, stages=stages))


@runs
def test_ctrl_c_is_handled_after_backends_were_freed(bundle: Bundle) -> None:
    command = [sys.executable, "-c", INTERRUPTED, str(bundle.folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr


def test_a_processor_without_bfloat16_is_refused(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(backend.ISA_LIMIT, raising=False)
    monkeypatch.setattr(backend, "import_openvino", lambda: None)
    core = SimpleNamespace(get_property=lambda device, name: ["FP32", "INT8"])
    monkeypatch.setattr(backend, "shared_core", lambda: core)
    with pytest.raises(BackendError, match="this processor has no products in bfloat16"):
        Pipeline.open(bundle.folder, device=BFLOAT16)


@pytest.mark.parametrize("limit", ["AVX2", "avx512_core", "AVX512_CORE_VNNI", "SSE41"])
def test_instructions_without_bfloat16_are_refused(bundle: Bundle, monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    monkeypatch.setattr(backend, "import_openvino", lambda: None)
    monkeypatch.setenv(backend.ISA_LIMIT, limit)
    with pytest.raises(BackendError, match=f"ONEDNN_MAX_CPU_ISA is '{limit.upper()}', without products in bfloat16"):
        Pipeline.open(bundle.folder, device=BFLOAT16)


def test_where_it_is_not_installed_the_command_is_said(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(BackendError, match=r"openvino is not installed: .*pip install '.*\[openvino\]'"):
        Pipeline.open(bundle.folder, device=BFLOAT16)
