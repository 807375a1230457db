"""The memory plan: its sums, what it refuses and offers, and how decoding gives way."""

from dataclasses import replace

import pytest
from gpu_fixtures import TEXT, Gpus

from bitdance_edge.cli import main
from bitdance_edge.runtime import Bundle, Pipeline, Request, RequestError
from bitdance_edge.runtime.bundle.specs import CacheSpec
from bitdance_edge.runtime.bundle.stage_names import WINDOW_STAGES, StageName
from bitdance_edge.runtime.memory_fit import (
    fitted,
    least_memory,
    most_images,
    parse_memory,
    refusal,
    require_memory,
)
from bitdance_edge.runtime.memory_plan import (
    ALLOWANCE,
    ARENA_SPREAD,
    ENOUGH_ON_GPU,
    IMAGE_ARENA_SPREAD,
    SESSIONS,
    SESSIONS_ALLOWANCE,
    Execution,
    plan_memory,
)
from bitdance_edge.runtime.prompt import PromptEncoder


def large(bundle: Bundle) -> Bundle:
    """The sizes of a 14B model at 1024x1024 in a manifest: 64 tokens a step, 64 steps, 40 layers of 8 cached heads."""

    def heavy(name: str, size: int, activations: int) -> dict:
        spec = bundle.stages[name]
        return {name: replace(spec, weight_bytes=size, precision="fp16", activation_bytes=activations)}

    stages = {
        **bundle.stages,
        **heavy("backbone", 28_000_000_000, 50_000_000),
        **heavy("head", 1_800_000_000, 30_000_000),
        **heavy("decoder", 500_000_000, 2_000_000_000),
    }
    model = replace(bundle.model, tokens_per_step=64, bits=32, prompt_tokens=300)
    cache = CacheSpec(layers=40, heads=8, length=4400, head_dim=128, dtype="float16")
    return replace(bundle, stages=stages, model=model, cache=cache)


def test_the_whole_is_the_sum_of_its_parts(bundle: Bundle) -> None:
    plan, unused = plan_memory(bundle, 2), {"encoder", *WINDOW_STAGES}
    assert {need.stage for need in plan.stages} == set(bundle.stages) - unused
    assert plan.weights == sum(stage.bytes for name, stage in bundle.stages.items() if name not in unused)
    assert plan.cache == bundle.cache.bytes(4)
    in_turn = replace(plan, overlapped=False)
    assert plan.activations > in_turn.activations == max(need.activations for need in plan.stages)
    assert plan.total == plan.weights + plan.cache + plan.tensors + plan.activations + ALLOWANCE


def longest_prompt(bundle: Bundle) -> str:
    """A prompt of as many tokens as the bundle takes; its tokenizer has one for a byte."""
    assert bundle.text is not None
    encoder, size = PromptEncoder.open(bundle), bundle.model.largest_size
    return "~" * (1 + bundle.model.prompt_tokens - len(encoder.conditional("~", size)))


@pytest.mark.parametrize(
    ("fixture", "images", "guidance", "schedule", "sampler", "window"),
    [
        ("cc_4x_patch", 1, 1.0, "constant", "sde", 1),
        ("cc_4x_patch", 1, 2.0, "constant", "ode", 1),
        ("cc_4x_patch", 2, 1.0, "linear", "sde", 1),
        ("cc_4x_patch", 2, 2.0, "linear", "sde", 1),
        ("cc_1x", 2, 2.0, "constant", "sde", 1),
        ("cc_1x", 1, 2.0, "linear", "ode", 1),
        (TEXT, 1, 2.0, "constant", "sde", 1),
        (TEXT, 2, 2.0, "linear", "ode", 1),
        (TEXT, 2, 1.0, "constant", "sde", 1),
        ("cc_4x_patch", 2, 2.0, "linear", "sde", 3),
        ("cc_1x", 1, 1.0, "constant", "ode", 2),
        (TEXT, 2, 2.0, "constant", "sde", 4),
    ],
)
def test_tensors_and_cache_are_what_a_pipeline_allocates(
    gpus: Gpus, fixture: str, images: int, guidance: float, schedule: str, sampler: str, window: int
) -> None:
    gpu = gpus(fixture)
    asked = {"steps": 3, "guidance_schedule": schedule, "sampler": sampler}
    subject = {"classes": [1]} if gpu.bundle.text is None else {"prompts": [longest_prompt(gpu.bundle)]}
    request = Request(
        **subject,
        **asked,
        guidance=guidance,
        count=images,
        seed=1,
        size=gpu.bundle.model.largest_size.pixels,
        window=window,
    )
    with Pipeline.open(gpu.bundle.folder) as pipeline:
        pipeline.generate(request)
        allocated = gpu.tensor_bytes
    bundle = replace(gpu.bundle, sampling=replace(gpu.bundle.sampling, **asked))
    plan = plan_memory(bundle, images, Execution(guided=guidance > 1, window=window))
    assert plan.tensors + plan.cache == allocated
    assert plan.cache == bundle.cache.bytes(images * (1 + (guidance > 1)))


def test_engines_of_older_operators_have_a_second_cache(gpus: Gpus) -> None:
    gpu = gpus(opset=20, aliases=False)
    with Pipeline.open(gpu.bundle.folder) as pipeline:
        pipeline.generate(Request(classes=[1], seed=1))
        allocated = gpu.tensor_bytes
    plan = plan_memory(gpu.bundle, 1)
    assert plan.tensors + plan.cache == allocated
    assert plan.cache == 2 * gpu.bundle.cache.bytes(2)
    assert plan_memory(gpu.bundle, 1, Execution(queued=False)).cache == gpu.bundle.cache.bytes(2)


def test_onnxruntime_has_no_landing_buffers(bundle: Bundle) -> None:
    queued, synchronous = plan_memory(bundle, 2), plan_memory(bundle, 2, Execution(queued=False))
    model, evaluations = bundle.model, bundle.sampling.steps + 1
    draws = {"linear": 4 + 2, "constant": 2}[bundle.sampling.guidance_schedule]
    assert queued.tensors - synchronous.tensors == evaluations * draws * model.tokens_per_step * model.bits * 4


def test_weights_are_those_of_the_files_that_are_loaded(bundle: Bundle) -> None:
    plan, engines = plan_memory(bundle, 1), plan_memory(bundle, 1, Execution(files={StageName.HEAD: 7}))
    assert plan.weights - engines.weights == bundle.stage(StageName.HEAD).bytes - 7


def test_decoding_gives_way_before_images_do(bundle: Bundle) -> None:
    decoder = replace(bundle.stage("decoder"), activation_bytes=ENOUGH_ON_GPU // 4)
    model = replace(bundle, stages={**bundle.stages, "decoder": decoder})
    whole = plan_memory(model, 4)
    assert fitted(whole, whole.total) == whole
    parts = fitted(whole, whole.total - decoder.activation_bytes // 2)
    assert parts is not None
    assert (parts.decoder_images, parts.overlapped) == (3, True)
    alone = fitted(whole, whole.total - 3 * decoder.activation_bytes)
    assert alone is not None
    assert (alone.decoder_images, alone.overlapped) == (1, True)
    turns = fitted(whole, alone.total - 1)
    assert turns is not None
    assert not turns.overlapped
    assert fitted(whole, whole.weights) is None


def test_no_more_images_are_decoded_at_once_than_is_worth_it(bundle: Bundle) -> None:
    decoder = replace(bundle.stage("decoder"), activation_bytes=ENOUGH_ON_GPU // 4)
    model = replace(bundle, stages={**bundle.stages, "decoder": decoder})
    assert [plan_memory(model, images).decoder_images for images in (1, 4, 5, 64)] == [1, 4, 4, 4]
    assert plan_memory(large(bundle), 4).decoder_images == 1  # one alone takes more
    needs = [plan_memory(model, images).stages[-1] for images in (4, 64)]
    assert needs[0] == needs[1]


def test_sessions_share_no_activations(bundle: Bundle) -> None:
    engines, sessions = plan_memory(bundle, 2), plan_memory(bundle, 2, SESSIONS)
    assert sessions.total - sessions.held == SESSIONS_ALLOWANCE
    spread = {StageName.DECODER: IMAGE_ARENA_SPREAD}
    parts = [int(need.activations * spread.get(StageName(need.stage), ARENA_SPREAD)) for need in engines.stages]
    assert sessions.activations == sum(parts) > ARENA_SPREAD * engines.activations
    # Decoding in turn with the loop would free nothing: less is left to give way.
    assert fitted(engines, least_memory(engines).total) == least_memory(engines)
    assert least_memory(sessions).overlapped
    assert fitted(sessions, least_memory(sessions).total - 1) is None


def test_a_refusal_says_the_numbers_and_what_would_fit(bundle: Bundle) -> None:
    model = large(bundle)
    with pytest.raises(RequestError) as refused:
        require_memory(model, 2, parse_memory("16GB"))
    message = str(refused.value)
    assert "2 images at once take" in message
    assert "weights 30" in message
    assert "16000 MB are free" in message
    assert "4-bit weights in backbone, modulation, head, 2 at once" in message
    assert "FP8" not in message  # 15 GB of weights and a cache
    assert "1 at once (max_batch 1)" in refusal(model, 2, most_bytes(model, 1))
    assert "No form of this bundle would fit" in refusal(model, 1, parse_memory("4GB"))


def most_bytes(bundle: Bundle, images: int) -> int:
    size = plan_memory(bundle, images).total
    assert most_images(bundle, 8, size) == images
    return size


@pytest.mark.parametrize(
    ("text", "size"), [("16GB", 16 * 10**9), ("1.5 gib", 3 * 2**29), (" 512MB ", 512 * 10**6), ("8MiB", 2**23)]
)
def test_memory_is_read_with_its_unit(text: str, size: int) -> None:
    assert parse_memory(text) == size


@pytest.mark.parametrize("text", ["16", "GB", "16 XB", "-4GB", ""])
def test_memory_without_a_unit_is_refused(text: str) -> None:
    with pytest.raises(RequestError, match=r"write a number with one of MB, GB, MiB, GiB, for example 16GB"):
        parse_memory(text)


def test_inspect_prints_the_plan_for_a_gpu(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(bundle.folder), "--memory", "16GB", "--images", "2"]) == 0
    printed = capsys.readouterr().out
    assert "fits into 16GB" in printed and "with ONNX Runtime on CUDA: fits into 16GB, " in printed
    assert main(["inspect", str(bundle.folder), "--memory", "100MB"]) == 0
    assert "does not fit into 100MB: 1 image at once take" in capsys.readouterr().out
    assert main(["inspect", str(bundle.folder), "--memory", "1GB"]) == 0
    printed = capsys.readouterr().out
    assert "fits into 1GB: " in printed and "with ONNX Runtime on CUDA: does not fit into 1GB, " in printed
    assert main(["inspect", str(bundle.folder), "--memory", "much"]) == 1
    assert "memory is 'much'" in capsys.readouterr().err


def test_a_pipeline_takes_as_many_as_fit_and_decodes_in_parts(gpus: Gpus) -> None:
    gpu = gpus(max_images=8)
    request = Request(classes=[1, 2, 3], seed=1, steps=2)
    with Pipeline.open(gpu.bundle.folder, device="cpu") as pipeline:
        wanted = pipeline.generate(request)
    how = Execution(files={name: len(f"engine of {name}") for name in gpu.bundle.stages})
    gpu.size = plan_memory(gpu.bundle, 4, how).total - 100
    with Pipeline.open(gpu.bundle.folder, max_batch=4) as pipeline:
        found = pipeline.generate(request)
        assert 1 <= pipeline.loaded.image_stage(StageName.DECODER).at_once < 4
    assert all(one.to_pil() == other.to_pil() for one, other in zip(found, wanted, strict=True))
    gpu.size = plan_memory(gpu.bundle, 1, how).total
    with Pipeline.open(gpu.bundle.folder) as pipeline:
        assert pipeline.max_batch < 8
    gpu.size = ALLOWANCE
    with pytest.raises(RequestError, match="1 image at once take"):
        Pipeline.open(gpu.bundle.folder)
    assert not gpu.memory
