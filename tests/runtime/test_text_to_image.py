"""Prompts through exported graphs: the reference's tokens, and rows of different length in one batch."""

import json
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from places import FIXTURES
from rounding import assert_same_bits, predictions_of, recorded_predictions
from safetensors.numpy import load_file
from test_fixture_tokens import RecordedNoise, generation_order

from bitdance_edge.model import load_text_to_image, text_to_image
from bitdance_edge.runtime import Bundle, Pipeline, Request, RequestError, Size
from bitdance_edge.runtime.attention import AttentionWindow
from bitdance_edge.runtime.bundle.stage_names import LOOP_STAGES
from bitdance_edge.runtime.image import read_settings, request_from_settings
from bitdance_edge.runtime.loop import BoundLoop, generate_tokens
from bitdance_edge.runtime.prompt import PromptEncoder
from bitdance_edge.runtime.request import Settings
from bitdance_edge.runtime.streaming import token_request

FIXTURE = "t2i_16x_swiglu"
SHORT, LONG = "a cat", "a red cat on a long and winding road, 一只猫, at night"
STEPS = 2


@pytest.fixture(scope="module")
def pipeline(exported: Callable[..., Bundle]) -> Iterator[Pipeline]:
    with Pipeline.open(exported(FIXTURE).folder) as opened:
        yield opened


def tokens_of(pipeline: Pipeline, request: Request) -> list[np.ndarray]:
    return [image.tokens for image in pipeline.generate(request)]


@pytest.mark.parametrize("opset", [24, 20])
def test_tokens_of_the_reference(exported: Callable[..., Bundle], opset: int) -> None:
    """Guided, conditional and unconditional prompts of 57 and 29 positions in one batch; the reference runs two."""
    bundle = exported(FIXTURE, opset)
    meta = json.loads((FIXTURES / FIXTURE / "meta.json").read_text())
    golden = load_file(FIXTURES / FIXTURE / "golden.safetensors")
    patch_shape = (bundle.model.tokens_per_step, bundle.model.bits)
    noise = RecordedNoise(golden["noise"], meta["noise_shapes"], meta["sample_steps"] + 1, patch_shape)
    height, width = meta["image_size"]
    size = Size(width=width, height=height)
    request = Request(
        prompts=[meta["prompt"]],
        count=meta["num_images"],
        size=size,
        steps=meta["sample_steps"],
        guidance=meta["guidance_scale"],
        seed=0,
    )
    settings = request.resolve(bundle)
    assert [len(settings.images[0].conditional), len(settings.images[0].unconditional)] == [57, 29]
    with Pipeline.open(bundle.folder) as opened:
        stages = {name: opened.backend.load(name) for name in LOOP_STAGES}
        asked = token_request(settings)
        loop = BoundLoop(opened.backend, bundle, stages, asked.shape)
        tokens = np.concatenate(list(generate_tokens(loop, asked, noise)), axis=1)
        pixels = opened.decode(tokens, size=size)
    sequence = golden["latent"].reshape(len(tokens), bundle.model.bits, -1).transpose(0, 2, 1)
    assert_same_bits(tokens, sequence[:, generation_order(bundle)], predictions(settings, noise))
    image = np.clip(127.5 * golden["image"] + 128, 0, 255).astype(np.uint8).transpose(0, 2, 3, 1)
    assert np.abs(pixels.astype(int) - image).max() <= 1  # a value on the edge between two levels


def predictions(settings: Settings, noise: RecordedNoise) -> list[np.ndarray]:
    """What PyTorch predicts for every patch, from the same draws."""
    model = load_text_to_image(FIXTURES / FIXTURE)
    sides = [[image.conditional for image in settings.images], [image.unconditional for image in settings.images]]
    with recorded_predictions(text_to_image) as found:
        patches = model.sample_patches(
            [torch.tensor(rows) for rows in sides],
            (settings.size.grid_height, settings.size.grid_width),
            steps=settings.steps,
            guidance=settings.guidance,
            noise=(torch.from_numpy(draw) for draw in noise.draws),
        )
        assert len(list(patches)) == settings.size.patches
    return found


def test_an_image_does_not_depend_on_the_prompts_beside_it(pipeline: Pipeline) -> None:
    together = tokens_of(pipeline, Request(prompts=[SHORT, LONG, SHORT], seed=7, steps=STEPS))
    for i, prompt in enumerate((SHORT, LONG, SHORT)):
        asked = Request(prompts=[prompt], seed=7 + i, steps=STEPS)
        # Another length of row is another order of summation.
        assert_same_bits(together[i][None], tokens_of(pipeline, asked)[0][None], predictions_of(pipeline.bundle, asked))


def test_batch_invariant_images_are_those_of_single_runs(pipeline: Pipeline) -> None:
    together = tokens_of(pipeline, Request(prompts=[SHORT, LONG], seed=7, steps=STEPS, batch_invariant=True))
    alone = [
        tokens_of(pipeline, Request(prompts=[prompt], seed=7 + i, steps=STEPS))[0]
        for i, prompt in enumerate((SHORT, LONG))
    ]
    assert np.array_equal(together, alone)


def test_prompt_negative_prompt_and_guidance_matter(pipeline: Pipeline) -> None:
    base = Request(prompts=[SHORT], seed=1, steps=STEPS)
    variants = [
        base,
        Request(prompts=[LONG], seed=1, steps=STEPS),
        Request(prompts=[SHORT], negative_prompt="blurry", seed=1, steps=STEPS),
        Request(prompts=[SHORT], guidance=1, seed=1, steps=STEPS),
    ]
    results = [tokens_of(pipeline, request)[0].tobytes() for request in variants]
    assert len(set(results)) == len(variants)


@pytest.mark.parametrize("size", [Size(width=192, height=128), "64x64"])
def test_every_size_of_the_bundle(pipeline: Pipeline, size: Size | str) -> None:
    (image,) = pipeline.generate(Request(prompts=[SHORT], size=size, seed=1, steps=STEPS))
    assert image.pixels is not None and str(Size.of(image.pixels)) == str(size)
    assert pipeline.tokenize(image.pixels[None]).shape == (1, *image.tokens.shape)


def test_an_image_is_completed_from_its_first_patches(pipeline: Pipeline) -> None:
    (whole,) = pipeline.generate(Request(prompts=[LONG], seed=4, steps=STEPS))
    patch = pipeline.bundle.model.tokens_per_step
    again = tokens_of(pipeline, Request(prompts=[LONG], seed=4, steps=STEPS, prefix=whole.tokens[: 2 * patch]))[0]
    other = tokens_of(pipeline, Request(prompts=[LONG], seed=5, steps=STEPS, prefix=whole.tokens[: 2 * patch]))[0]
    predicted = predictions_of(pipeline.bundle, Request(prompts=[LONG], seed=4, steps=STEPS))
    assert_same_bits(again[None], whole.tokens[None], predicted)
    assert np.array_equal(other[: 2 * patch], whole.tokens[: 2 * patch]) and not np.array_equal(other, whole.tokens)


def test_png_settings_make_the_image_again(pipeline: Pipeline, tmp_path) -> None:
    request = Request(prompts=[SHORT], negative_prompt="grey", size="64x64", seed=9, steps=STEPS)
    (image,) = pipeline.generate(request)
    image.save(tmp_path / "cat.png")
    settings = read_settings(tmp_path / "cat.png")
    assert (settings["prompt"], settings["negative_prompt"], settings["size"]) == (SHORT, "grey", "64x64")
    assert np.array_equal(tokens_of(pipeline, request_from_settings(settings))[0], image.tokens)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompts": []}, "no prompt given"),
        ({"prompts": ["  "]}, "a prompt is empty"),
        ({"prompts": ["a" * 500]}, r"the prompt has \d+ tokens; this bundle takes \d+: .*--max-prompt 5\d\d"),
        ({"prompts": [SHORT], "negative_prompt": "b" * 500}, r"--max-prompt 5\d\d"),
        ({"prompts": [SHORT], "size": "128x192"}, "size is 128x192; this bundle makes 192x128, 64x64 only"),
        ({"classes": [3]}, "draws prompts, not classes"),
        ({"prompts": [3]}, "prompt is 3; it must be text"),
    ],
)
def test_bad_request_is_named_before_any_work(pipeline: Pipeline, fields: dict, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        pipeline.stream(Request(**fields))


def test_class_bundle_refuses_prompts(bundle: Bundle) -> None:
    with Pipeline.open(bundle.folder) as opened, pytest.raises(RequestError, match="draws classes, not prompts"):
        opened.stream(Request(prompts=["a cat"]))


def test_longest_prompt_is_taken_whole(pipeline: Pipeline) -> None:
    encoder, size = PromptEncoder.open(pipeline.bundle), pipeline.bundle.model.default_size
    assert encoder is not None and pipeline.bundle.text is not None
    template = len(encoder.tokenizer.encode(encoder.text.conditional.replace("{prompt}", "")).ids)
    longest = "~" * (pipeline.bundle.text.max_prompt - template)  # a byte a token
    assert len(encoder.conditional(longest, size)) == pipeline.bundle.model.prompt_tokens
    assert len(tokens_of(pipeline, Request(prompts=[longest], seed=1, steps=1))) == 1
    with pytest.raises(RequestError, match="tokens; this bundle takes"):
        encoder.conditional(longest + "~", size)


def test_padding_is_seen_by_nobody_but_itself() -> None:
    window = AttentionWindow(block=2, cache_length=8, padding=np.array([0, 2]))
    mask = window.mask(0, 5)[:, 0]
    assert not mask[1, 2:, :2].any() and mask[1, :2].sum(axis=1).tolist() == [1, 1]
    assert mask[1, 2].tolist() == [False, False, True] + 5 * [False]  # causal before the block
    assert mask[0, 3].tolist() == mask[0, 4].tolist() == 5 * [True] + 3 * [False]
    assert window.positions(0, 5).tolist() == [[0, 1, 2, 3, 4], [0, 0, 0, 1, 2]]
    assert window.positions(5, 2).tolist() == [[5, 6], [3, 4]]
