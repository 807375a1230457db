"""Changing an image: what is kept, what is drawn again, at what cost, and what is refused."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bitdance_edge.runtime import (
    Bundle,
    GeneratedImage,
    ImageDone,
    PatchDone,
    Pipeline,
    Preview,
    Request,
    RequestError,
    load_pixels,
    read_settings,
    request_from_settings,
)
from bitdance_edge.runtime.bundle.stage_names import StageName
from bitdance_edge.runtime.candidates import Likeliest, Likelihood
from bitdance_edge.runtime.loop import generate_tokens
from bitdance_edge.runtime.noise import ImageNoise
from bitdance_edge.runtime.preview import sequence_to_grid
from bitdance_edge.runtime.streaming import token_request

STEPS = 5
ALL = STEPS + 1  # evaluations of the head for a patch that is drawn from nothing


@pytest.fixture(scope="module")
def pipeline(bundle: Bundle) -> Iterator[Pipeline]:
    with Pipeline.open(bundle.folder) as opened:
        yield opened


@pytest.fixture(scope="module")
def trained(digits: Callable[[str], Bundle]) -> Iterator[Pipeline]:
    with Pipeline.open(digits("fp32").folder) as opened:
        yield opened


@pytest.fixture(scope="module")
def init(pipeline: Pipeline) -> GeneratedImage:
    return one(pipeline, Request(classes=[3], seed=1, steps=STEPS))


def one(pipeline: Pipeline, request: Request) -> GeneratedImage:
    (image,) = pipeline.generate(request)
    return image


def cells(pipeline: Pipeline, rows: slice, columns: slice) -> np.ndarray:
    """A mask of tokens, bool [h, w]."""
    size = pipeline.bundle.model.default_size
    mask = np.zeros((size.grid_height, size.grid_width), bool)
    mask[rows, columns] = True
    return mask


def in_sequence(pipeline: Pipeline, mask: np.ndarray) -> np.ndarray:
    """A mask of tokens in generation order, bool [h*w]."""
    side = pipeline.bundle.model.patch_side
    height, width = mask.shape
    places = sequence_to_grid(np.arange(mask.size), height, width, side).ravel()
    return mask.ravel()[np.argsort(places)]


def evaluations(pipeline: Pipeline, request: Request) -> int:
    """Launches of the head for a request."""
    pipeline.generate(Request(classes=[0], seed=0, steps=1))
    before = pipeline.times()[StageName.HEAD].launches
    pipeline.generate(request)
    return pipeline.times()[StageName.HEAD].launches - before


@pytest.mark.parametrize("sampler", ["sde", "ode"])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("schedule", ["constant", "linear"])
@pytest.mark.parametrize(("rows", "columns"), [(slice(2, 6), slice(2, 6)), (slice(0, 3), slice(1, 8))])
def test_no_token_outside_the_mask_differs(
    pipeline: Pipeline, init: GeneratedImage, rows: slice, columns: slice, schedule: str, guidance: float, sampler: str
) -> None:
    mask = cells(pipeline, rows, columns)
    how = {"steps": STEPS, "guidance": guidance, "guidance_schedule": schedule, "sampler": sampler}
    drawn = pipeline.generate(Request(classes=[3, 7], init=init.tokens, mask=mask, seed=4, **how))
    kept = ~in_sequence(pipeline, mask)
    for image in drawn:
        np.testing.assert_array_equal(image.tokens[kept], init.tokens[kept])
        assert (image.tokens[~kept] != init.tokens[~kept]).any()
    assert (drawn[0].tokens != drawn[1].tokens).any()
    again = pipeline.generate(Request(classes=[3], init=init.tokens, mask=mask, seed=4, **how))
    np.testing.assert_array_equal(again[0].tokens, drawn[0].tokens)  # in a batch, and alone


def test_only_patches_with_something_to_draw_run_the_head(pipeline: Pipeline, init: GeneratedImage) -> None:
    asked = Request(classes=[3], init=init.tokens, seed=4, steps=STEPS, output="tokens")
    whole, cut = cells(pipeline, slice(2, 6), slice(2, 6)), cells(pipeline, slice(2, 6), slice(1, 2))
    assert evaluations(pipeline, replace(asked, mask=whole)) == 4 * ALL
    assert evaluations(pipeline, replace(asked, mask=cut)) == 2 * ALL
    assert evaluations(pipeline, replace(asked, strength=0)) == 0


@pytest.mark.parametrize(("strength", "share"), [(1.0, 1.0), (0.5, 0.5)])
def test_strength_is_the_share_of_evaluations(
    pipeline: Pipeline, init: GeneratedImage, strength: float, share: float
) -> None:
    patches = pipeline.bundle.model.default_size.patches
    asked = Request(classes=[3], init=init.tokens, strength=strength, seed=4, steps=STEPS, output="tokens")
    assert evaluations(pipeline, asked) == share * ALL * patches


@pytest.mark.parametrize("sampler", ["sde", "ode"])
def test_strength_goes_from_the_image_to_one_drawn_from_nothing(trained: Pipeline, sampler: str) -> None:
    init = one(trained, Request(classes=[3], seed=1))
    asked = Request(classes=[7], init=init.tokens, seed=4, sampler=sampler)
    strengths = (0, 0.02, 0.5, 0.7, 1)
    changed = [(one(trained, replace(asked, strength=s)).tokens != init.tokens).mean() for s in strengths]
    assert changed[0] == 0
    assert changed[1] < 0.02
    assert changed == sorted(changed)
    drawn = one(trained, Request(classes=[7], seed=4, sampler=sampler))
    np.testing.assert_array_equal(one(trained, replace(asked, strength=1)).tokens, drawn.tokens)


def test_strengths_are_by_patch(pipeline: Pipeline, init: GeneratedImage) -> None:
    size = pipeline.bundle.model.default_size
    strengths = np.zeros((size.patches_down, size.patches_across))
    strengths[:, :2], strengths[0, 3] = 0.5, 1.0
    asked = Request(classes=[7], init=init.tokens, strength=strengths, seed=4, steps=STEPS)
    image = one(pipeline, asked)
    patches = (size.patches, -1)
    differs = (image.tokens != init.tokens).reshape(patches).any(axis=1)
    assert not differs[strengths.ravel() == 0].any()
    assert evaluations(pipeline, asked) == 8 * ALL // 2 + ALL


def test_a_prefix_is_a_mask_that_keeps_the_first_rows(pipeline: Pipeline, init: GeneratedImage) -> None:
    mask = cells(pipeline, slice(4, 8), slice(0, 8))
    prefix = init.tokens[: init.tokens.shape[0] // 2]
    masked = one(pipeline, Request(classes=[5], init=init.tokens, mask=mask, seed=4, steps=STEPS))
    completed = one(pipeline, Request(classes=[5], prefix=prefix, seed=4, steps=STEPS))
    np.testing.assert_array_equal(masked.tokens, completed.tokens)


def test_pixels_outside_the_mask_are_the_originals(pipeline: Pipeline, init: GeneratedImage) -> None:
    picture = np.random.default_rng(1).integers(0, 256, (*init.to_pil().size[::-1], 3), dtype=np.uint8)
    mask = np.zeros(picture.shape[:2], bool)
    mask[9:20, 6:21] = True
    asked = Request(classes=[3], init=picture, mask=mask, seed=4, steps=STEPS)
    blended, plain = one(pipeline, asked), one(pipeline, replace(asked, blend=False))
    np.testing.assert_array_equal(blended.tokens, plain.tokens)
    np.testing.assert_array_equal(np.asarray(blended.to_pil())[~mask], picture[~mask])
    np.testing.assert_array_equal(pipeline.decode(plain.tokens[None])[0], plain.pixels)
    assert (np.asarray(plain.to_pil())[~mask] != picture[~mask]).any()


def test_tokens_alone_are_decoded_to_be_kept(pipeline: Pipeline, init: GeneratedImage) -> None:
    mask = cells(pipeline, slice(2, 6), slice(2, 6))
    image = one(pipeline, Request(classes=[3], init=init.tokens, mask=mask, seed=4, steps=STEPS))
    outside = ~np.kron(mask, np.ones((4, 4), bool))
    np.testing.assert_array_equal(np.asarray(image.to_pil())[outside], np.asarray(init.to_pil())[outside])


def test_candidates_are_the_images_of_their_seeds(pipeline: Pipeline, init: GeneratedImage) -> None:
    mask = cells(pipeline, slice(0, 4), slice(0, 8))
    asked = Request(classes=[3, 7], init=init.tokens, mask=mask, seed=4, steps=STEPS, candidates=3)
    drawn = pipeline.generate(asked)
    assert drawn[0].seed in range(4, 7) and drawn[1].seed in range(7, 10)
    for image, number in zip(drawn, (3, 7), strict=True):
        alone = one(pipeline, replace(asked, classes=[number], seed=image.seed, candidates=1))
        np.testing.assert_array_equal(alone.to_pil(), image.to_pil())
    assert [image.seed for image in drawn] == [image.seed for image in pipeline.generate(asked)]


def test_candidates_in_parts_are_the_same_and_counted(bundle: Bundle, init: GeneratedImage) -> None:
    with Pipeline.open(bundle.folder, max_batch=2) as pipeline, Pipeline.open(bundle.folder) as whole:
        mask = cells(pipeline, slice(2, 4), slice(0, 8))
        asked = Request(classes=[3], init=init.tokens, mask=mask, seed=4, steps=STEPS, candidates=3, preview_every=8)
        events = list(pipeline.stream(asked))
        (image,) = [event.image for event in events if isinstance(event, ImageDone)]
        np.testing.assert_array_equal(image.tokens, one(whole, asked).tokens)
    done = [event for event in events if isinstance(event, PatchDone)]
    assert [event.patch for event in done] == list(range(1, 33))
    assert {(event.patches, len(event.tokens)) for event in done} == {(32, 1)}
    assert [event.patch for event in events if isinstance(event, Preview)] == [8]


def likelihood(pipeline: Pipeline, tokens: np.ndarray) -> float:
    """How likely the second half of an image is behind its first, which is drawn anew so little that no bit flips."""
    rows = pipeline.bundle.model.default_size.patches // 2
    asked = Request(classes=[3], init=tokens, strength=np.repeat([0.02, 0.0], rows), seed=4)
    settings = asked.resolve(pipeline.bundle)
    noise = ImageNoise([4], settings.steps, settings.given.tokens.shape[2:])
    found, request = Likelihood(settings.given), token_request(settings)
    with pipeline.loaded.loop(request.shape) as loop:
        drawn = np.concatenate(list(generate_tokens(loop, request, noise, found.add)), axis=1)
    np.testing.assert_array_equal(drawn[0], tokens)
    return float(found.total[0])


def test_what_follows_is_likelier_behind_its_own_beginning(trained: Pipeline) -> None:
    three, seven = (one(trained, Request(classes=[number], seed=1)).tokens for number in (3, 7))
    half = len(three) // 2
    mixed = np.concatenate([seven[:half], three[half:]])
    assert likelihood(trained, mixed) < likelihood(trained, three) < 0


def test_the_likeliest_candidate_is_kept(pipeline: Pipeline, init: GeneratedImage) -> None:
    mask = cells(pipeline, slice(0, 4), slice(0, 8))
    asked = Request(classes=[3, 7], init=init.tokens, mask=mask, seed=4, candidates=4)
    (batch,) = asked.resolve(pipeline.bundle).batches(8)
    first, second = batch.rounds(2)[0], batch.rounds(2)[1]
    likeliest = Likeliest(batch)
    tokens = np.arange(8, dtype=np.int8).reshape(2, 4, 1, 1)
    likeliest.compare(tokens[0], first, np.array([-3.0, -1.0, -2.0, -2.0]))
    likeliest.compare(tokens[1], second, np.array([-1.0, -4.0, -1.5, -1.0]))
    assert likeliest.tokens.ravel().tolist() == [1, 7]
    assert [image.seed for image in likeliest.batch.images] == [4 + 1, 8 + 3]


@pytest.mark.parametrize("blend", [True, False])
def test_png_makes_its_image_again(pipeline: Pipeline, init: GeneratedImage, tmp_path: Path, blend: bool) -> None:
    path, size = tmp_path / "edited.png", pipeline.bundle.model.default_size
    mask = np.zeros((size.height, size.width), bool)
    mask[3:20, 5:18] = True
    asked = Request(
        classes=[7], init=init.pixels, mask=mask, strength=0.8, blend=blend, candidates=2, seed=4, steps=STEPS
    )
    image = one(pipeline, asked)
    image.save(path)
    again = request_from_settings(read_settings(path), load_pixels(path, size.height, size.width))
    assert one(pipeline, again).to_pil() == image.to_pil()
    if blend:
        with pytest.raises(RequestError, match="pass its own pixels too"):
            request_from_settings(json.loads(json.dumps(image.settings)))


def test_text_to_image_bundles_take_edits(exported: Callable[..., Bundle]) -> None:
    with Pipeline.open(exported("t2i_16x_swiglu").folder) as pipeline:
        size = pipeline.bundle.model.default_size
        asked = Request.example(pipeline.bundle)
        init = one(pipeline, replace(asked, seed=1, steps=2))
        mask = cells(pipeline, slice(1, size.grid_height // 2), slice(1, size.grid_width))
        image = one(pipeline, replace(asked, init=init.pixels, mask=mask, seed=2, steps=4))
        kept = ~in_sequence(pipeline, mask)
        tokens = pipeline.tokenize(np.asarray(init.to_pil())[None])[0]
        np.testing.assert_array_equal(image.tokens[kept], tokens[kept])


MASK = np.eye(8, dtype=bool)
BELOW = np.arange(8)[:, None].repeat(8, axis=1) > 2
TOKENS = np.ones((64, 16), np.int8)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mask": MASK}, "mask is given without init"),
        ({"strength": 0.5}, "strength is given without init"),
        ({"init": TOKENS}, "give a mask of what to redraw, or a strength such as 0.7"),
        ({"init": TOKENS, "mask": MASK, "prefix": TOKENS}, "prefix and init are both given"),
        ({"init": TOKENS, "strength": 1.5}, "strength is 1.5; it must be from 0"),
        ({"init": TOKENS, "strength": -0.1}, "strength is -0.1"),
        ({"init": TOKENS, "strength": float("nan")}, "strength is nan"),
        ({"init": TOKENS, "strength": "much"}, "strength is 'much'"),
        ({"init": TOKENS, "strength": [0.5, 0.5]}, "strength has 2 values; give one number, or one for each of the 16"),
        ({"init": TOKENS, "mask": MASK[:4]}, r"mask is \[4, 8\]; it must have the image's 32 rows of 32 pixels"),
        ({"init": TOKENS, "mask": MASK.astype(np.uint8)}, "mask is uint8 .* it must be bool"),
        ({"init": TOKENS, "mask": ~MASK & MASK}, "black. everywhere, so nothing would be redrawn"),
        ({"init": TOKENS, "mask": ~MASK | MASK}, "white. everywhere, so nothing would be kept"),
        ({"init": np.zeros((16, 32, 3), np.uint8), "strength": 1}, "init is a picture of 32x16 pixels"),
        ({"init": np.zeros((2, 32, 32, 3), np.uint8), "strength": 1}, "init has 2 pictures for 1 images"),
        ({"init": np.zeros((32, 32), np.uint8), "strength": 1}, r"it must be pixels, uint8 \[32, 32, 3\]"),
        ({"init": np.zeros((64, 16)), "strength": 1}, "init has values other than -1 and .1"),
        ({"init": TOKENS, "strength": 0.5, "candidates": 2}, "candidates is 2, and they are judged by the kept"),
        ({"candidates": 0}, "candidates is 0; it must be a whole number from 1"),
        ({"init": TOKENS, "mask": BELOW, "candidates": 2}, "omit candidates, or keep some of the image below"),
        ({"seed": 2**63 - 1, "init": TOKENS, "mask": MASK, "candidates": 2}, "no room for 1 images of 2 candidates"),
    ],
)
def test_bad_value_is_named(bundle: Bundle, fields: dict, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        Request(**{"classes": [1], **fields}).resolve(bundle)
