"""Engines that stream their weights: they get the memory that nothing else takes, and are never captured."""

import numpy as np
import pytest
from gpu_fixtures import MAX_IMAGES, Gpus, write_engine

from bitdance_edge.runtime import Pipeline, Request, RequestError
from bitdance_edge.runtime.backends.cuda_graph import PATCH
from bitdance_edge.runtime.bundle.record import WEIGHT_STREAMING
from bitdance_edge.runtime.memory_plan import Execution, plan_memory

REQUEST = Request(classes=[3], seed=5, steps=3, output="tokens")
STREAMED = ("backbone", "head")


@pytest.mark.parametrize(("left", "streamed"), [(500, [500, 0]), (10**9, None)])
def test_they_get_what_nothing_else_takes(gpus: Gpus, left: int, streamed: list[int] | None) -> None:
    gpu = gpus(max_images=1)
    with Pipeline.open(gpu.bundle.folder, device="cpu") as pipeline:
        (wanted,) = pipeline.generate(REQUEST)
    for stage in STREAMED:
        write_engine(gpu.bundle, stage, 1, {WEIGHT_STREAMING: True})
    files = {stage: len(f"engine of {stage}") for stage in gpu.bundle.stages}
    planned = plan_memory(gpu.bundle, 1, Execution(files=files | dict.fromkeys(STREAMED, 0)))
    gpu.size = planned.total + left
    with Pipeline.open(gpu.bundle.folder) as pipeline:
        (found,) = pipeline.generate(REQUEST)
        assert pipeline.choice.graphs[PATCH].startswith("not a CUDA graph: backbone streams its weights")
    assert np.array_equal(found.tokens, wanted.tokens)
    engines = [gpu.engines[stage] for stage in STREAMED]
    given = sorted((engine.weight_streaming_budget_v2 for engine in engines), reverse=True)
    assert given == (streamed or sorted((engine.streamable_weights_size for engine in engines), reverse=True))
    assert gpu.engines["tokens"].weight_streaming_budget_v2 == 0


def test_without_room_for_the_rest_it_is_refused(gpus: Gpus) -> None:
    gpu = gpus(max_images=MAX_IMAGES)
    for stage in STREAMED:
        write_engine(gpu.bundle, stage, MAX_IMAGES, {WEIGHT_STREAMING: True})
    gpu.size = 600_000_000
    with pytest.raises(RequestError, match="1 image at once takes"):
        Pipeline.open(gpu.bundle.folder)
