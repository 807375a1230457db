"""A pipeline called by the names of diffusers, a stream for asyncio, and how things show themselves in a notebook."""

import asyncio
import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bitdance_edge.runtime import Bundle, ImageDone, PatchDone, Pipeline, Request, RequestError


@pytest.fixture(scope="module")
def pipe(bundle: Bundle) -> Pipeline:
    return Pipeline.from_pretrained(bundle.folder, threads=1)


def test_a_call_is_the_request_with_other_names(pipe: Pipeline) -> None:
    done: list[tuple[int, int]] = []
    output = pipe(
        [3, "7"],
        num_inference_steps=2,
        guidance_scale=1.5,
        seed=5,
        sampler="ode",
        callback_on_step_end=lambda _, patch, patches, kwargs: done.append((patch, patches)),
    )
    plain = pipe.generate(Request(classes=[3, 7], steps=2, guidance=1.5, seed=5, sampler="ode"))
    assert [np.asarray(image).tobytes() for image in output.images] == [
        np.asarray(image.pixels).tobytes() for image in plain
    ]
    assert [dict(image.settings) for image in output.generated] == [dict(image.settings) for image in plain]
    assert done == [(patch, 16) for patch in range(1, 17)]


def test_generators_of_pytorch_stand_for_their_seeds(pipe: Pipeline) -> None:
    first, second = (torch.Generator().manual_seed(seed) for seed in (8, 3))
    output = pipe(1, num_images_per_prompt=2, generator=[first, second], num_inference_steps=1, output="tokens")
    assert [image.seed for image in output.generated] == [8, 3] and not output.images
    assert pipe(1, generator=first, num_inference_steps=1, width=32, height=32).generated[0].seed == 8


def test_a_prompt_is_drawn(word_bundle: Bundle) -> None:
    with Pipeline.from_pretrained(word_bundle.folder, threads=1) as pipe:
        output = pipe("a red fish", num_inference_steps=1, seed=1, negative_prompt="a fish", width=64, height=64)
        assert output.images[0].size == (64, 64)
        assert repr(output.generated[0]) == "GeneratedImage('a red fish', seed 1, 64x64)"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 3}, "unknown argument steps; a call takes num_inference_steps"),
        ({"seed": 1, "generator": 2}, "seed and generator are both given"),
        ({"generator": [1], "seeds": [2]}, "seeds and generator are both given"),
        ({"generator": "seven"}, "give a torch.Generator"),
        ({"width": 32}, "give both"),
        ({"callback_on_step_end": 3}, "callback_on_step_end is 3; give a function"),
        ({"width": 32, "height": 32, "size": "32x32"}, "give both, or size="),
    ],
)
def test_arguments_that_say_nothing_or_too_much(pipe: Pipeline, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        pipe(3, **arguments)


def test_a_stream_for_asyncio_leaves_the_loop_free_and_ends_when_it_is_left(pipe: Pipeline) -> None:
    async def count() -> tuple[list[int], list[Any]]:
        ticks: list[int] = []
        ticking = asyncio.create_task(tick(ticks))
        events = [event async for event in pipe.astream(Request(classes=[2], steps=20, seed=1))]
        ticking.cancel()
        return ticks, events

    async def tick(ticks: list[int]) -> None:
        while True:
            ticks.append(len(ticks))
            await asyncio.sleep(0.001)

    async def leave() -> int:
        seen = 0
        async for event in pipe.astream(Request(classes=[2], steps=20, seed=1)):
            seen += isinstance(event, PatchDone)
            if seen == 2:
                break
        return seen

    async def cancelled() -> None:
        await asyncio.wait_for(count(), 0.05)

    ticks, events = asyncio.run(count())
    assert len(ticks) > 3 and isinstance(events[-1], ImageDone)
    assert asyncio.run(leave()) == 2
    with pytest.raises(TimeoutError):
        asyncio.run(cancelled())
    assert len(pipe(2, num_inference_steps=1).images) == 1  # the device was given back


def test_reprs_are_short_and_images_show_in_notebooks(pipe: Pipeline) -> None:
    (image,) = pipe(4, num_inference_steps=1, seed=9).generated
    assert repr(image) == "GeneratedImage(class 4, seed 9, 32x32)"
    assert repr(pipe) == "Pipeline(cc_4x_patch-24-fp32, class-conditional, onnxruntime-cpu)"
    assert repr(pipe.bundle).startswith("Bundle(cc_4x_patch-24-fp32, class-conditional, 32x32, ")
    png = image._repr_png_()
    assert png is not None
    with Image.open(io.BytesIO(png)) as shown:
        assert np.array_equal(np.asarray(shown), np.asarray(image.pixels))
