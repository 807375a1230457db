"""What a request may rely on: its seed, its batch, its prefix, its previews, and that it can be cancelled."""

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rounding import assert_same_bits, predictions_of

from bitdance_edge.runtime import (
    Bundle,
    Cancelled,
    GeneratedImage,
    ImageDone,
    PatchDone,
    Pipeline,
    Preview,
    Request,
    RequestError,
    read_settings,
    request_from_settings,
)
from bitdance_edge.runtime.backends import onnxruntime
from bitdance_edge.runtime.bundle.stage_names import LOOP_STAGES

STEPS = 3


@pytest.fixture(scope="module")
def pipeline(bundle: Bundle) -> Iterator[Pipeline]:
    with Pipeline.open(bundle.folder) as opened:
        yield opened


def one(pipeline: Pipeline, request: Request) -> GeneratedImage:
    (image,) = pipeline.generate(request)
    return image


@pytest.mark.parametrize(("small", "asked", "threads"), [(True, None, 1), (False, None, 0), (True, 2, 2)])
def test_a_small_model_runs_on_one_thread_unless_more_are_asked_for(
    bundle: Bundle, small: bool, asked: int | None, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    largest = max(bundle.stage(stage).weight_bytes for stage in LOOP_STAGES)
    monkeypatch.setattr(onnxruntime, "SMALL_MODEL", largest + small)
    options, given = onnxruntime.cpu_options, []
    monkeypatch.setattr(onnxruntime, "cpu_options", lambda count, *rest: given.append(count) or options(count, *rest))
    for stage in ("head", "decoder"):
        onnxruntime.OnnxRuntimeBackend(bundle, asked).load(stage)
    assert given == [threads, threads]  # 0 is one a physical core


def test_same_seed_same_bytes_in_another_process_and_with_any_thread_count(pipeline: Pipeline, tmp_path: Path) -> None:
    one(pipeline, Request(classes=[3], seed=5, steps=STEPS)).save(tmp_path / "here.png")
    for threads in (1, 2):
        script = (
            "from bitdance_edge.runtime import Pipeline, Request\n"
            f"pipeline = Pipeline.open({str(pipeline.bundle.folder)!r}, threads={threads})\n"
            f"pipeline.generate(Request(classes=[3], seed=5, steps={STEPS}))[0].save({str(tmp_path / 'there.png')!r})"
        )
        subprocess.run([sys.executable, "-c", script], check=True)
        assert (tmp_path / "there.png").read_bytes() == (tmp_path / "here.png").read_bytes()


def test_previews_change_nothing_and_grow(pipeline: Pipeline) -> None:
    plain = one(pipeline, Request(classes=[3], seed=5, steps=STEPS))
    events = list(pipeline.stream(Request(classes=[3], seed=5, steps=STEPS, preview_every=4)))
    (image,) = [event.image for event in events if isinstance(event, ImageDone)]
    assert image.to_pil() == plain.to_pil()
    previews = [event for event in events if isinstance(event, Preview)]
    assert [preview.patch for preview in previews] == [4, 8, 12]  # the last is the image itself
    unseen = [(preview.pixels == 128).all(axis=-1).mean() for preview in previews]
    assert unseen[0] > unseen[1] > unseen[2] >= 0.25
    assert [event.patch for event in events if isinstance(event, PatchDone)] == list(range(1, 17))


def test_seeds_differ(pipeline: Pipeline) -> None:
    first, second = pipeline.generate(Request(classes=[3], count=2, seed=5, steps=STEPS))
    assert not np.array_equal(first.tokens, second.tokens)


def test_image_of_a_batch_is_the_single_image_of_its_seed(pipeline: Pipeline) -> None:
    batch = pipeline.generate(Request(classes=[1, 2], count=3, seed=40, steps=STEPS, batch_invariant=True))
    assert [image.seed for image in batch] == list(range(40, 46))
    for image, class_id in zip(batch, [1, 1, 1, 2, 2, 2], strict=True):
        alone = one(pipeline, Request(classes=[class_id], seed=image.seed, steps=STEPS))
        assert np.array_equal(image.tokens, alone.tokens)


def test_parts_of_a_large_request_are_numbered_through(bundle: Bundle) -> None:
    with Pipeline.open(bundle.folder, max_batch=2) as pipeline:
        events = list(pipeline.stream(Request(classes=[0, 1, 2], seed=1, steps=1)))
    assert [event.image.index for event in events if isinstance(event, ImageDone)] == [0, 1, 2]
    assert {event.first_image for event in events if isinstance(event, PatchDone)} == {0, 2}


@pytest.mark.parametrize("guidance", [1.0, 3.9])
@pytest.mark.parametrize("patches", [0, 1, 7, 16])
def test_prefix_is_kept_and_completed(pipeline: Pipeline, guidance: float, patches: int) -> None:
    whole = one(pipeline, Request(classes=[3], seed=5, steps=STEPS, guidance=guidance))
    kept = patches * pipeline.bundle.model.tokens_per_step
    request = Request(classes=[3], seed=5, steps=STEPS, guidance=guidance, prefix=whole.tokens[:kept])
    completed = one(pipeline, request)
    assert np.array_equal(completed.tokens[:kept], whole.tokens[:kept])
    if patches in (0, 16) or guidance == 1:
        # The rest too: noise belongs to its patch, not to how many were drawn before. Under the linear schedule the
        # unconditional row of the first patch is its own only when it is sampled.
        predicted = predictions_of(pipeline.bundle, replace(request, prefix=None))
        assert_same_bits(completed.tokens[None], whole.tokens[None], predicted)


def test_png_makes_its_image_again(pipeline: Pipeline, tmp_path: Path) -> None:
    prefix = one(pipeline, Request(classes=[4], seed=1, steps=STEPS)).tokens[:20]
    images = pipeline.generate(
        Request(classes=[3, 8], seed=5, steps=STEPS, guidance=2.5, prefix=prefix, batch_invariant=True)
    )
    images[1].save(tmp_path / "image.png")
    settings = read_settings(tmp_path / "image.png")
    assert settings["bundle_sha256"] == pipeline.bundle.digest
    again = one(pipeline, request_from_settings(settings))
    assert again.to_pil() == images[1].to_pil()
    assert again.settings == images[1].settings


def test_png_of_another_sampler_makes_its_image_again(pipeline: Pipeline, tmp_path: Path) -> None:
    asked = Request(classes=[3], seed=5, steps=STEPS, sampler="ode", guidance=2.0, guidance_schedule="constant")
    image = one(pipeline, asked)
    assert not np.array_equal(image.tokens, one(pipeline, Request(classes=[3], seed=5, steps=STEPS)).tokens)
    image.save(tmp_path / "image.png")
    again = one(pipeline, request_from_settings(read_settings(tmp_path / "image.png")))
    assert np.array_equal(again.tokens, image.tokens) and again.settings == image.settings


def test_settings_without_sampler_are_the_bundles(pipeline: Pipeline) -> None:
    """PNGs from before a request could choose."""
    image = one(pipeline, Request(classes=[3], seed=5, steps=STEPS))
    older = {key: value for key, value in image.settings.items() if key not in ("sampler", "guidance_schedule")}
    assert np.array_equal(one(pipeline, request_from_settings(older)).tokens, image.tokens)


def test_cancel_between_patches(pipeline: Pipeline) -> None:
    cancel, seen = threading.Event(), 0
    with pytest.raises(Cancelled, match="after 3 of 16"):
        for _ in pipeline.stream(Request(classes=[0], steps=1), cancel):
            seen += 1
            if seen == 3:
                cancel.set()
    assert seen == 3


def test_tokens_only_leaves_the_decoder_out(bundle: Bundle) -> None:
    with Pipeline.open(bundle.folder) as pipeline:
        image = one(pipeline, Request(classes=[0], seed=0, steps=1, output="tokens"))
        assert "decoder" not in pipeline.times()
    assert image.pixels is None
    assert set(np.unique(image.tokens)) <= {-1, 1}
    with pytest.raises(RequestError, match="tokens only"):
        image.to_pil()


def test_tokens_survive_decoding_and_encoding_shapes(pipeline: Pipeline) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    tokens = pipeline.tokenize(pixels)
    assert tokens.shape == (2, 64, 16)
    assert tokens.dtype == np.int8
    assert np.array_equal(pipeline.reconstruct(pixels), pipeline.decode(tokens))
    with pytest.raises(RequestError, match="uint8"):
        pipeline.tokenize(pixels.astype(np.float32))
    with pytest.raises(RequestError, match=r"must be \[B, 64, 16\]"):
        pipeline.decode(tokens[:, :3])


def test_half_precision_bundles_run(exported: Callable[..., Bundle], digits: Callable[[str], Bundle]) -> None:
    for bundle in (exported("cc_1x", precision="fp16"), digits("fp16")):
        with Pipeline.open(bundle.folder) as pipeline:
            image = one(pipeline, Request(classes=[3], seed=5, steps=STEPS))
        assert image.pixels is not None


def test_bfloat16_bundle_is_refused_on_the_cpu(exported: Callable[..., Bundle]) -> None:
    from bitdance_edge.runtime import BackendError

    with pytest.raises(BackendError, match=r"bfloat16.*--dtype fp32"):
        Pipeline.open(exported("cc_1x", precision="bf16").folder)


def test_cache_is_updated_in_place(bundle: Bundle) -> None:
    """ONNX Runtime says so when it copies a cache instead; two runs would then also leave the input untouched."""
    script = (
        "import bitdance_edge.runtime.backends.onnxruntime as backend\n"
        "backend.LOG_SEVERITY = 2\n"
        "from bitdance_edge.runtime import Pipeline, Request\n"
        f"Pipeline.open({str(bundle.folder)!r}).generate(Request(classes=[3], steps=1))"
    )
    log = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stderr
    assert "in-place optimization not activated" not in log
