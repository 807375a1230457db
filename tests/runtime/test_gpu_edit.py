"""Edits on the GPU that is not there: the same images as on the CPU, in the memory that was planned for them."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from gpu_fixtures import Gpus

from bitdance_edge.runtime import Bundle, Pipeline, Request
from bitdance_edge.runtime.bundle.specs import WindowSpec
from bitdance_edge.runtime.bundle.stage_names import StageName
from bitdance_edge.runtime.memory_plan import Execution, MemoryPlan, plan_memory
from bitdance_edge.runtime.planning import plan_on

STEPS = 4
CUT = np.zeros((8, 8), bool)
CUT[1:4, 2:7] = True  # whole patches and parts of some
STRENGTHS = np.full((4, 4), 0.5)
STRENGTHS[1, 1:] = 0.0
STRENGTHS[2, 2] = 1.0

EDITS = {
    "mask": {"mask": CUT, "candidates": 2},
    "mask and strength": {"mask": CUT, "strength": 0.6},
    "strengths": {"strength": STRENGTHS.ravel(), "candidates": 2},
}


def edit(bundle: Bundle, **fields: object) -> Request:
    rows, columns = bundle.model.default_size.tokens, bundle.model.bits
    tokens = np.where(np.random.default_rng(1).random((rows, columns)) < 0.5, -1, 1)
    example = replace(Request.example(bundle), init=tokens, seed=5, steps=STEPS, output="tokens")
    return replace(example, count=2, **fields)


@pytest.mark.parametrize("name", EDITS)
@pytest.mark.parametrize("sampler", ["sde", "ode"])
@pytest.mark.parametrize(("guidance", "schedule"), [(1.0, "constant"), (3.0, "constant"), (3.0, "linear")])
def test_edits_are_those_of_the_cpu(gpus: Gpus, name: str, sampler: str, guidance: float, schedule: str) -> None:
    gpu = gpus()
    asked = edit(gpu.bundle, **EDITS[name], sampler=sampler, guidance=guidance, guidance_schedule=schedule)
    with Pipeline.open(gpu.bundle.folder) as pipeline:
        assert pipeline.choice.backend == "tensorrt"
        found = pipeline.generate(asked)
    with Pipeline.open(gpu.bundle.folder, device="cpu") as pipeline:
        wanted = pipeline.generate(asked)
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one.tokens, other.tokens)
        assert one.seed == other.seed
    assert not any(gpu.alive.values())


@pytest.mark.parametrize("name", EDITS)
@pytest.mark.parametrize("sampler", ["sde", "ode"])
def test_edits_in_windows_are_those_of_the_cpu_without(gpus: Gpus, name: str, sampler: str) -> None:
    gpu = gpus()
    # A random head multiplies what is left of a state's move.
    replace(gpu.bundle, window=WindowSpec(tolerance=1e-6, runs=())).write()
    asked = edit(gpu.bundle, **EDITS[name], sampler=sampler, guidance=3.0, guidance_schedule="linear")
    with Pipeline.open(gpu.bundle.folder) as pipeline:
        assert pipeline.choice.backend == "tensorrt"
        found = pipeline.generate(replace(asked, window=3))
    with Pipeline.open(gpu.bundle.folder, device="cpu") as pipeline:
        wanted = pipeline.generate(replace(asked, window=1))
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one.tokens, other.tokens)
    assert not any(gpu.alive.values())


@pytest.mark.parametrize("name", EDITS)
def test_tensors_and_cache_are_what_an_edit_allocates(gpus: Gpus, name: str) -> None:
    gpu = gpus()
    asked = edit(gpu.bundle, **EDITS[name], guidance=2.0, guidance_schedule="linear")
    settings = asked.resolve(gpu.bundle)
    with Pipeline.open(gpu.bundle.folder) as pipeline:
        pipeline.generate(asked)
        allocated = gpu.tensor_bytes
        (batch,) = settings.batches(pipeline.max_batch)
        (drawn,) = batch.rounds(pipeline.max_batch)
    bundle = replace(gpu.bundle, sampling=replace(gpu.bundle.sampling, steps=STEPS, guidance_schedule="linear"))
    how = Execution(given=settings.given, judged=settings.candidates > 1)
    plan = plan_memory(bundle, len(drawn.images), how)
    decoder = next(need.tensors for need in plan.stages if need.stage == StageName.DECODER)
    assert plan.tensors - decoder + plan.cache == allocated


def test_an_image_to_start_from_is_planned_with_the_encoder(gpus: Gpus, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, planned = gpus(), []

    def plan(*asked: Any) -> MemoryPlan | None:
        planned.append(asked[-1])
        return plan_on(*asked)

    monkeypatch.setattr("bitdance_edge.runtime.pipeline.plan_on", plan)
    tokens, size = edit(gpu.bundle, strength=0.5, window=1), gpu.bundle.model.default_size
    pixels = replace(tokens, init=np.zeros((size.height, size.width, 3), np.uint8))
    with Pipeline.open(gpu.bundle.folder) as pipeline:
        planned.clear()
        for asked in (tokens, pixels, tokens):
            pipeline.generate(asked)
    assert planned == [False, True, True]  # once loaded, it stays
    with_encoder, without = (plan_memory(gpu.bundle, 1, Execution(encodes=encodes)) for encodes in (True, False))
    assert with_encoder.weights - without.weights == gpu.bundle.stage(StageName.ENCODER).bytes


def test_an_edit_runs_the_patches_that_it_draws(gpus: Gpus) -> None:
    gpu = gpus()
    whole = np.zeros((8, 8), bool)
    whole[2:6, 2:6] = True
    with Pipeline.open(gpu.bundle.folder) as pipeline:
        for fields, evaluations in (({"mask": whole}, 4 * (STEPS + 1)), ({"strength": 0.5}, 16 * 3)):
            before = pipeline.times()[StageName.HEAD].launches if pipeline.times() else 0
            pipeline.backend.run_eagerly("launches are counted")  # type: ignore[attr-defined]  of TensorRT
            pipeline.generate(replace(edit(gpu.bundle, **fields), count=1))
            assert pipeline.times()[StageName.HEAD].launches - before == evaluations
