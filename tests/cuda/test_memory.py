"""What is taken of the GPU's memory stays within the plan, whatever sizes ran before: arenas are the real ones here.

The fake CUDA's cuDNN asks for workspaces. Kernels, cuBLAS's workspaces and graphs, for which the plan sets more aside,
take nothing here.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
from cuda_trace import Trace

from bitdance_edge.runtime import Bundle, Pipeline, Request
from bitdance_edge.runtime.backends.cuda_graph import A_GRAPH, PATCH
from bitdance_edge.runtime.backends.device import free_memory
from bitdance_edge.runtime.backends.onnxruntime_cuda import OnnxRuntimeCudaBackend
from bitdance_edge.runtime.memory_plan import SESSIONS, plan_memory

CLASSES, TEXT = "cc_4x_patch", "t2i_16x_swiglu"
MOST = 6  # images at once


def requests(bundle: Bundle) -> Iterator[Request]:
    """Every number of images, the largest not last; prompts that grow."""
    for images in (*range(1, MOST + 1), 2, MOST - 1):
        if bundle.text is None:
            yield Request(classes=[i % bundle.model.num_classes for i in range(images)], seed=1)
        else:
            yield Request(prompts=["~" * images], count=images, seed=1, size=bundle.model.largest_size.pixels)


def taken(before: int) -> int:
    left = free_memory()
    assert left is not None
    return before - left


@pytest.fixture
def free() -> int:
    found = free_memory()
    assert found is not None
    return found


@pytest.mark.parametrize("fixture", [CLASSES, TEXT])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_the_plan_holds_whatever_ran_before(
    on_cuda: Callable[..., Bundle], fixture: str, precision: str, free: int
) -> None:
    bundle = on_cuda(fixture, precision)
    with Pipeline.open(bundle.folder, backend="onnxruntime-cuda", max_batch=MOST) as pipeline:
        plan = pipeline.loaded.plan
        assert plan is not None
        for request in requests(bundle):
            pipeline.generate(request)
            assert taken(free) <= plan.held
        assert taken(free) > plan.weights + plan.cache / MOST  # what was asked for is counted
    assert taken(free) == 0


def test_the_plan_of_a_request_holds_with_an_image_to_start_from(on_cuda: Callable[..., Bundle], free: int) -> None:
    bundle = on_cuda(CLASSES, "fp16")
    size = bundle.model.default_size
    request = Request(classes=[1] * MOST, seed=1, init=np.zeros((size.height, size.width, 3), np.uint8), strength=0.5)
    with Pipeline.open(bundle.folder, backend="onnxruntime-cuda", max_batch=MOST) as pipeline:
        pipeline.generate(request)
        given = request.resolve(bundle).given
        plan = plan_memory(bundle, MOST, replace(SESSIONS, given=given, encodes=True))
        assert taken(free) <= plan.held


@pytest.mark.parametrize("fixture", [CLASSES, TEXT])
def test_sizes_in_turn_take_no_more_than_the_largest(on_cuda: Callable[..., Bundle], fixture: str, free: int) -> None:
    bundle, found = on_cuda(fixture, "fp16"), []
    for asked in (list(requests(bundle)), list(requests(bundle))[MOST - 1 : MOST]):
        with Pipeline.open(bundle.folder, backend="onnxruntime-cuda", max_batch=MOST) as pipeline:
            for request in asked:
                pipeline.generate(request)
            if len(asked) > 1:
                pipeline.generate(asked[MOST - 1])
            found.append(taken(free))
    in_turn, largest = found
    assert in_turn == pytest.approx(largest, rel=0.02)


def test_what_was_captured_is_captured_again(on_cuda: Callable[..., Bundle], trace: Trace) -> None:
    request = Request(classes=[1, 2], seed=1, output="tokens")
    bundle = on_cuda(CLASSES, "fp16")
    with Pipeline.open(bundle.folder, backend="onnxruntime-cuda", max_batch=2) as pipeline:
        assert isinstance(pipeline.backend, OnnxRuntimeCudaBackend)
        pipeline.generate(request)
        pipeline.generate(request)
        trace.start()
        pipeline.backend.trim(pipeline.backend.stages)
        lines = trace.lines("free", "graph")
        assert lines[0] == "graph destroyed"  # before the memory that it runs over
        assert lines[-1].startswith("free")
        trace.start()
        pipeline.generate(request)
        lines = trace.lines()
        first = next(i for i, line in enumerate(lines) if line.startswith("capture begins"))
        assert any(line.startswith("malloc") for line in lines[:first])
        assert not [line for line in lines if "ILLEGAL" in line]
        assert pipeline.choice.graphs[PATCH] == A_GRAPH
        trace.start()
        pipeline.generate(request)
        assert not trace.lines("malloc", "free", "capture")
