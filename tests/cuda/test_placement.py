"""Every stage in every type runs on CUDA from its first node to its last, so that a launch can be a CUDA graph."""

from collections.abc import Callable

import numpy as np
import pytest
from conftest import Trace  # type: ignore[import-not-found]

from bitdance_edge.runtime import Bundle, Pipeline, Request
from bitdance_edge.runtime.backends.cuda_graph import A_GRAPH
from bitdance_edge.runtime.backends.onnxruntime_cuda import OnnxRuntimeCudaBackend

FIXTURES = ["cc_1x", "cc_4x_patch", "t2i_16x_swiglu"]


@pytest.mark.parametrize("fixture", FIXTURES)
def test_every_stage_is_capturable(on_cuda: Callable[..., Bundle], fixture: str, precision: str) -> None:
    bundle = on_cuda(fixture, precision)
    backend = OnnxRuntimeCudaBackend(bundle)
    with backend.current():
        for stage in bundle.stages:
            backend.load(stage)
    backend.close()
    assert backend.graphs == dict.fromkeys(bundle.stages, A_GRAPH)


def test_without_a_build_the_choice_says_which_stage_is_no_graph(exported: Callable[..., Bundle]) -> None:
    with Pipeline.open(exported("cc_1x_ode").folder, backend="onnxruntime-cuda") as pipeline:
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


def test_images_and_tokens_have_their_shapes(on_cuda: Callable[..., Bundle], precision: str) -> None:
    """Values mean nothing here; what is not computed is zero, and zero is a token of -1."""
    bundle = on_cuda("cc_4x_patch", precision)
    with Pipeline.open(bundle.folder, backend="onnxruntime-cuda") as pipeline:
        (image,) = pipeline.generate(Request(classes=[1], steps=2))
        assert image.tokens.dtype == np.float32
        again = pipeline.encode(image.pixels)  # type: ignore[attr-defined]
    assert again.shape == image.tokens.shape
