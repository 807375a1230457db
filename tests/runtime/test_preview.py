"""Previews: fast ones are close to what they approximate and decode nothing, full ones stay within their share."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitdance_edge.runtime import Bundle, BundleError, Event, PatchDone, Pipeline, Preview, Request, RequestError
from bitdance_edge.runtime.backends.interface import Pending
from bitdance_edge.runtime.bundle.specs import ImageSize
from bitdance_edge.runtime.loaded import LoadedBundle
from bitdance_edge.runtime.preview import UNSEEN, PreviewBudget, PreviewCanvas, PreviewMap, places, sequence_to_grid
from bitdance_edge.runtime.quality import psnr

STEPS = 3


@pytest.fixture(scope="module")
def digits_pipeline(digits: Callable[[str], Bundle]) -> Iterator[Pipeline]:
    with Pipeline.open(digits("fp32").folder) as opened:
        yield opened


def previews(events: Iterator[Event]) -> list[Preview]:
    return [event for event in events if isinstance(event, Preview)]


def test_fast_previews_look_like_the_image_and_change_nothing(digits_pipeline: Pipeline) -> None:
    asked = Request(classes=range(10), seed=5, steps=10)
    images = digits_pipeline.generate(asked)
    whole = np.stack([image.pixels for image in images if image.pixels is not None])
    canvas = digits_pipeline.preview_canvas(10)
    for event in digits_pipeline.stream(replace(asked, preview_every=1, preview_kind="fast")):
        if isinstance(event, PatchDone):
            canvas.add(event.tokens)
        elif isinstance(event, Preview) and event.patch < event.patches:
            assert np.array_equal(event.pixels, canvas.pixels)
    assert psnr(canvas.pixels, whole) > 18  # 20.6 dB when it was written; black has 11
    assert psnr(canvas.pixels, whole) > psnr(np.zeros_like(whole), whole) + 6


def test_fast_previews_decode_nothing_on_the_way(bundle: Bundle) -> None:
    with Pipeline.open(bundle.folder) as pipeline:
        request = Request(classes=[3], seed=5, steps=STEPS, preview_every=5, preview_kind="fast", output="tokens")
        found = previews(pipeline.stream(request))
        assert "decoder" not in pipeline.times()
    assert [preview.patch for preview in found] == [5, 10, 15]
    assert [(preview.pixels == UNSEEN).all(axis=-1).mean() >= 1 - preview.patch / 16 for preview in found] == [True] * 3
    assert not np.array_equal(found[0].pixels, found[1].pixels)


@pytest.mark.parametrize("patch_side", [1, 2, 4])
def test_a_canvas_drawn_patch_by_patch_is_the_one_drawn_at_once(patch_side: int) -> None:
    size = ImageSize(
        height=32, width=64, grid_height=8, grid_width=16, tokens=128, patches=0, patches_down=0, patches_across=0
    )
    generator = np.random.default_rng(0)
    drawn_by = PreviewMap(generator.normal(0, 20, (9 * 5 + 1, 4 * 4 * 3)).astype(np.float32))
    tokens = generator.choice([-1, 1], (2, size.tokens, 5)).astype(np.int8)
    canvas = PreviewCanvas(drawn_by, 2, 5, size, patch_side)
    for first in range(0, size.tokens, 16):
        canvas.add(tokens[:, first : first + 16])
    at_once = PreviewCanvas(drawn_by, 2, 5, size, patch_side)
    at_once.add(tokens)
    np.testing.assert_allclose(
        canvas.pixels, at_once.pixels.astype(int), atol=1
    )  # sums of another order may round apart


@pytest.mark.parametrize("patch_side", [1, 2, 4])
def test_places_are_where_the_order_puts_tokens(patch_side: int) -> None:
    size = ImageSize(
        height=32, width=64, grid_height=8, grid_width=16, tokens=128, patches=0, patches_down=0, patches_across=0
    )
    grid = sequence_to_grid(np.arange(128), 8, 16, patch_side)
    for token, place in enumerate(places(size, patch_side)):
        assert grid.ravel()[place] == token


def test_a_map_that_is_linear_is_found_again() -> None:
    size = ImageSize(
        height=16, width=16, grid_height=8, grid_width=8, tokens=64, patches=0, patches_down=0, patches_across=0
    )
    generator = np.random.default_rng(1)
    true = PreviewMap(np.vstack([generator.normal(0, 4, (9 * 3, 12)), np.full((1, 12), 128)]).astype(np.float32))
    tokens = generator.choice([-1, 1], (40, 64, 3)).astype(np.int8)
    canvas = PreviewCanvas(true, 40, 3, size, 2)
    canvas.add(tokens)
    found = PreviewMap.fitted(tokens, canvas.pixels, size, 2)
    assert np.abs(found.weights[:-1] - true.weights[:-1]).max() < 0.3
    assert np.abs(found.weights[-1] - true.weights[-1] + 0.5).max() < 0.5  # bytes are cut, half a level below


def test_full_previews_stay_within_their_share(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """A patch takes a second here, and a preview two."""
    clock = 0.0
    start_preview = LoadedBundle.preview

    def preview(*arguments: Any) -> Pending:
        nonlocal clock
        clock += 2.0
        return start_preview(*arguments)

    monkeypatch.setattr("bitdance_edge.runtime.preview.perf_counter", lambda: clock)
    monkeypatch.setattr(LoadedBundle, "preview", preview)
    shown = []
    with Pipeline.open(bundle.folder) as pipeline:
        for event in pipeline.stream(Request(classes=[3], seed=5, steps=1, preview_share=0.3)):
            if isinstance(event, PatchDone):
                clock += 1.0
            elif isinstance(event, Preview):
                shown.append(event.patch)
    # The first at once: how long it takes is not known yet. Then when 4 of the 14 seconds are previews, and 6 of 20.
    assert shown == [1, 10, 14]


def test_budget_counts_what_was_spent(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("bitdance_edge.runtime.preview.perf_counter", lambda: now)
    budget = PreviewBudget(0.2, expected=1.0)
    assert not budget.allows()
    now += 4.0
    assert budget.allows()  # 1 of 4 + 1
    with budget.paying():
        now += 2.0
    assert budget.expected == budget.spent == 2.0
    assert not budget.allows()
    now += 12.0
    assert budget.allows()  # 2 + 2 of 18 + 2


def test_a_bundle_without_the_map_says_so(bundle: Bundle) -> None:
    without = replace(bundle, fast_preview=None)
    with pytest.raises(RequestError, match=r"has no fast previews.*--no-fast-previews"):
        Request(classes=[1], preview_every=1, preview_kind="fast").resolve(without)


def test_a_damaged_map_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    for content, message in ((b"x", "cannot be read"), (None, r"has shape \[3, 3\], this model needs \[145, 48\]")):
        path = tmp_path / "map.npy"
        np.save(path, np.zeros((3, 3), np.float16))
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(BundleError, match=message):
            PreviewMap.load(path, bundle.model.bits, bundle.model.pixels_per_token)
