"""A text-to-image model behind the API: prompts, negative prompts, sizes, and requests that are refused."""

import base64
import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from PIL import Image
from serving import Server

from bitdance_edge.runtime import Bundle, Pipeline, Request

FISH: dict[str, Any] = {"prompt": "a red fish", "size": "64x64", "num_inference_steps": 2}


@pytest.fixture(scope="module")
def text_bundle(exported: Callable[..., Bundle]) -> Bundle:
    return exported("t2i_16x_swiglu")


def pixels(data: dict[str, Any]) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data["b64_json"]))))


def test_prompts_of_several_clients_share_batches_and_keep_their_images(
    text_server: Server, text_bundle: Bundle, pool: ThreadPoolExecutor
) -> None:
    asked = [
        {**FISH, "seed": 1},
        {**FISH, "seed": 2, "prompt": "two rather long boats under a bridge"},
        {**FISH, "seed": 3, "negative_prompt": "blue"},
        {**FISH, "seed": 4, "size": "192x128"},
    ]
    answers = list(pool.map(lambda each: text_server.generate(**each), asked))
    with Pipeline.open(text_bundle.folder) as pipeline:
        for each, answer in zip(asked, answers, strict=True):
            request = Request(
                prompts=[each["prompt"]],
                negative_prompt=each.get("negative_prompt"),
                seed=each["seed"],
                size=each["size"],
                steps=2,
            )
            (want,) = pipeline.generate(request)
            assert want.pixels is not None and answer.status_code == 200, answer.text
            got = pixels(answer.json()["data"][0])
            assert got.shape == want.pixels.shape
            assert np.abs(got.astype(int) - want.pixels).mean() < 2  # batches may round differently


def test_a_partial_image_has_the_size_asked_for(text_server: Server) -> None:
    answer = text_server.generate(**{**FISH, "size": "192x128"}, stream=True, partial_images=1)
    assert answer.text.count('"size": "192x128"') == 2 and "event: error" not in answer.text


def test_sizes_are_those_of_the_model(text_server: Server) -> None:
    text, digits, _ = text_server.http.get("/v1/capabilities").json()["models"]
    assert [size["name"] for size in text["sizes"]] == ["192x128", "64x64"] and text["negative_prompt"]
    assert [size["name"] for size in digits["sizes"]] == ["32x32"] and not digits["negative_prompt"]
    wrong = text_server.generate(**{**FISH, "size": "32x32"})
    assert wrong.status_code == 400 and "192x128, 64x64" in wrong.json()["error"]["message"]
    assert text_server.generate(prompt="7", model="digits-4x").status_code == 200


def test_a_prompt_of_too_many_tokens_or_none_is_refused(text_server: Server) -> None:
    long = text_server.generate(**{**FISH, "prompt": "fish and more fish " * 60})
    assert long.status_code == 413 and long.json()["error"]["code"] == "prompt_too_long"
    empty = text_server.generate(**{**FISH, "prompt": "  "})
    assert empty.status_code == 400 and empty.json()["error"]["param"] == "prompt"


def test_an_image_of_any_of_the_sizes_is_tokenised(text_server: Server, text_bundle: Bundle) -> None:
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(file, "PNG")
    asked = {"image": base64.b64encode(file.getvalue()).decode(), "size": "64x64"}
    answer = text_server.http.post("/v1/tokens", json=asked)
    if "encoder" not in text_bundle.stages:
        assert answer.json()["error"]["code"] == "no_encoder"
        return
    tokens = answer.json()
    job = {**FISH, "prefix": {"tokens": tokens["tokens"], "patches": 1}}
    assert tokens["size"] == "64x64" and text_server.http.post("/v1/jobs", json=job).status_code == 202
    misfit = text_server.http.post("/v1/jobs", json={**job, "size": "192x128"})
    assert misfit.status_code == 400 and misfit.json()["error"]["param"] == "prefix"


def test_a_word_that_the_model_does_not_know_is_refused(text_server: Server) -> None:
    fish = {**FISH, "model": "words"}
    assert text_server.generate(**fish).status_code == 200
    for asked in ({**fish, "prompt": "a blue fish"}, {**fish, "negative_prompt": "blue"}):
        answer = text_server.generate(**asked)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["param"]) == (400, "invalid_prompt", "prompt")
        assert "'blue', which this model does not know; its words are a, fish, red." in error["message"]
