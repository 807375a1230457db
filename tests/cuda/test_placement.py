"""Every stage in every type runs on CUDA from its first node to its last, so that a launch can be a CUDA graph."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cuda_trace import Trace

from bitdance_edge.runtime import Bundle, Pipeline, Request
from bitdance_edge.runtime.backends.onnxruntime_cuda import CAPTURABLE, OnnxRuntimeCudaBackend

FIXTURES = ["cc_1x", "cc_4x_patch", "t2i_16x_swiglu"]


@pytest.fixture(params=["fp32", "fp16", "bf16"])
def precision(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize("fixture", FIXTURES)
def test_every_stage_is_capturable(on_cuda: Callable[..., Bundle], fixture: str, precision: str) -> None:
    bundle = on_cuda(fixture, precision)
    backend = OnnxRuntimeCudaBackend(bundle)
    with backend.current():
        for stage in bundle.stages:
            backend.load(stage)
    backend.close()
    assert backend.graphs == dict.fromkeys(bundle.stages, CAPTURABLE)


def test_without_a_build_the_choice_says_which_stage_is_no_graph(
    exported: Callable[..., Bundle], tmp_path: Path
) -> None:
    source, ignored = exported("cc_1x", precision="fp16").folder, shutil.ignore_patterns("targets")
    folder = shutil.copytree(source, tmp_path / "bundle", ignore=ignored)
    with Pipeline.open(folder, backend="onnxruntime-cuda") as pipeline:
        pipeline.generate(Request(classes=[1], steps=1))
        assert pipeline.choice.graphs["decoder"].startswith("not a CUDA graph: ")
        assert any("decoder: not a CUDA graph" in line for line in pipeline.choice.lines())


def test_attention_takes_a_fused_kernel(on_cuda: Callable[..., Bundle], precision: str, trace: Trace) -> None:
    """Batched products and a softmax would be three launches, and would write the scores."""
    with Pipeline.open(on_cuda("cc_4x_patch", precision).folder, backend="onnxruntime-cuda") as pipeline:
        pipeline.generate(Request(classes=[1], steps=2, output="tokens"))
        layers = pipeline.bundle.cache.layers
    captured = trace.captured()
    fused = [line for line in captured if "attention_kernel" in line or "flash_fwd" in line]
    assert len(fused) >= layers
    assert not [line for line in captured if "softmax" in line.lower() or "GemmStridedBatched" in line]


def test_decoder_and_encoder_run(on_cuda: Callable[..., Bundle], precision: str) -> None:
    """Values mean nothing here."""
    bundle = on_cuda("cc_4x_patch", precision)
    size = Request(classes=[1]).resolve(bundle).size
    pixels = np.zeros((2, size.pixels.height, size.pixels.width, 3), np.uint8)
    with Pipeline.open(bundle.folder, backend="onnxruntime-cuda") as pipeline:
        assert pipeline.reconstruct(pixels).shape == pixels.shape
        assert {pipeline.choice.graphs[stage] for stage in ("decoder", "encoder")} == {CAPTURABLE}


def test_a_build_takes_fewer_launches(on_cuda: Callable[..., Bundle], tmp_path: Path, trace: Trace) -> None:
    """The head's and the backbone's kernels of a patch, against those of the portable graphs."""
    built = on_cuda("cc_4x_patch", "fp16")
    folder = shutil.copytree(built.folder, tmp_path / "bundle", ignore=shutil.ignore_patterns("targets"))
    counts = []
    for each in (built.folder, folder):
        with Pipeline.open(each, backend="onnxruntime-cuda") as pipeline:
            pipeline.generate(Request(classes=[1], steps=8, output="tokens"))
        counts.append(sum(line.startswith(("launch ", "call ")) for line in trace.captured()))
    assert counts[0] < 0.77 * counts[1]  # 939 of 1229; the backbone, of which little is rewritten, is in both
