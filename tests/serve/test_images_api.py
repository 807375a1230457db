"""The OpenAI-compatible API, with the official client and without."""

import base64
import io
import json
from typing import Any

import numpy as np
import openai
import pytest
from PIL import Image
from serving import Server

from bitdance_edge.runtime import Pipeline, Request


@pytest.fixture(scope="session")
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def pixels(file: str | None) -> np.ndarray:
    assert file is not None
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(file))).convert("RGB"))


def expected(reference: Pipeline, prompt: str, **settings: Any) -> list[np.ndarray]:
    images = reference.generate(Request(classes=[prompt], **settings))
    return [image.pixels for image in images if image.pixels is not None]


def test_images_are_those_of_the_pipeline_with_seed_plus_i(client: openai.OpenAI, reference: Pipeline) -> None:
    answer = client.images.generate(prompt="7", n=2, extra_body={"seed": 5, "num_inference_steps": 4})
    assert answer.data is not None and answer.size == "32x32" and answer.output_format == "png"
    assert [image.model_extra for image in answer.data] == [{"seed": 5}, {"seed": 6}]
    wanted = expected(reference, "7", count=2, seed=5, steps=4)
    assert all(np.array_equal(pixels(image.b64_json), want) for image, want in zip(answer.data, wanted, strict=True))
    assert answer.usage is not None and answer.usage.output_tokens == 2 * 64


def test_a_drawn_seed_is_returned_and_makes_the_image_again(server: Server) -> None:
    (first,) = server.generate(prompt="3").json()["data"]
    (again,) = server.generate(prompt="3", seed=first["seed"]).json()["data"]
    assert first == again


def test_a_png_carries_its_settings(server: Server) -> None:
    (data,) = server.generate(prompt="3", seed=9, guidance_scale=2.5).json()["data"]
    with Image.open(io.BytesIO(base64.b64decode(data["b64_json"]))) as image:
        settings = json.loads(image.info["bitdance"])
    assert settings["class"] == 3 and settings["seed"] == 9 and settings["guidance"] == 2.5


@pytest.mark.parametrize("output_format", ["jpeg", "webp"])
def test_output_formats_and_their_compression(client: openai.OpenAI, output_format: Any) -> None:
    def size(compression: int) -> int:
        answer = client.images.generate(
            prompt="8", output_format=output_format, output_compression=compression, extra_body={"seed": 1}
        )
        assert answer.data is not None
        file = base64.b64decode(answer.data[0].b64_json or "")
        assert Image.open(io.BytesIO(file)).format == output_format.upper()
        return len(file)

    assert size(5) < size(100)


def test_streaming_shows_different_partials_then_the_same_image(client: openai.OpenAI, reference: Pipeline) -> None:
    stream: Any = client.images.generate(prompt="2", n=2, stream=True, partial_images=3, extra_body={"seed": 8})
    events = list(stream)
    kinds = [event.type for event in events]
    assert kinds.count("image_generation.partial_image") == 6 and kinds[-2:] == ["image_generation.completed"] * 2
    partial = [event for event in events if event.type.endswith("partial_image") and event.image_index == 1]
    assert [event.partial_image_index for event in partial] == [0, 1, 2]
    assert len({event.b64_json for event in partial}) == 3
    wanted = expected(reference, "2", count=2, seed=8)
    for event, want in zip(events[-2:], wanted, strict=True):
        assert np.array_equal(pixels(event.b64_json), want)


def test_a_stream_ends_without_a_done_marker(server: Server) -> None:
    answer = server.generate(prompt="2", stream=True, partial_images=1)
    assert answer.headers["content-type"].startswith("text/event-stream")
    names = [line.removeprefix("event: ") for line in answer.text.splitlines() if line.startswith("event: ")]
    assert names == ["image_generation.partial_image", "image_generation.completed"]
    assert "[DONE]" not in answer.text


def test_a_slow_stream_is_kept_alive(small_server: Server) -> None:
    answer = small_server.generate(prompt="2", stream=True, num_inference_steps=100)
    assert ": keep-alive\n\n" in answer.text and "image_generation.completed" in answer.text


@pytest.mark.parametrize(
    ("asked", "status", "code", "param", "says"),
    [
        ({"prompt": "7", "colour": "red"}, 400, "unknown_parameter", "colour", "colour"),
        ({}, 400, "missing_parameter", "prompt", "prompt"),
        ({"prompt": "horse"}, 400, "invalid_prompt", "prompt", "'horse'"),
        ({"prompt": 7}, 400, "invalid_value", "prompt", "string"),
        ({"prompt": "7", "size": "1024x1024"}, 400, "invalid_size", "size", "32x32"),
        ({"prompt": "7", "n": 11}, 400, "invalid_value", "n", "1 to 10"),
        ({"prompt": "7", "num_inference_steps": 999}, 400, "invalid_value", "num_inference_steps", "1 to 200"),
        ({"prompt": "7", "guidance_scale": 0.5}, 400, "invalid_value", "guidance_scale", "1"),
        ({"prompt": "7", "seed": 2**63 - 1, "n": 2}, 400, "invalid_value", "seed", f"the largest is {2**63 - 2}"),
        ({"prompt": "7", "partial_images": 4}, 400, "invalid_value", "partial_images", "3"),
        ({"prompt": "7", "response_format": "url"}, 400, "invalid_value", "response_format", "b64_json"),
        ({"prompt": "7", "negative_prompt": "3"}, 400, "invalid_value", "negative_prompt", "classes"),
        ({"prompt": "7", "model": "dall-e-3"}, 404, "model_not_found", "model", "digits-4x"),
        ({"prompt": "7" * 5000}, 413, "prompt_too_long", "prompt", "5000"),
    ],
)
def test_a_wrong_request_is_told_what_is_wrong(
    server: Server, asked: dict[str, Any], status: int, code: str, param: str, says: str
) -> None:
    answer = server.generate(**asked)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["code"] == code and error["param"] == param and says in error["message"]
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("body", "content_type"),
    [(b"{", "application/json"), (b"[]", "application/json"), (b'{"prompt":"7"}', "text/plain")],
)
def test_what_is_not_json_is_refused(server: Server, body: bytes, content_type: str) -> None:
    answer = server.http.post("/v1/images/generations", content=body, headers={"Content-Type": content_type})
    assert answer.status_code == 400 and answer.json()["error"]["code"] == "invalid_json"


def test_the_client_sees_errors_as_openai_would_raise_them(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="32x32"):
        client.images.generate(prompt="7", size="512x512")
    with pytest.raises(openai.NotFoundError, match="digits-4x"):
        client.images.generate(prompt="7", model="other")


def test_models_capabilities_and_metrics_agree(client: openai.OpenAI, server: Server) -> None:
    (model,) = client.models.list().data
    assert client.models.retrieve(model.id) == model
    (offered,) = server.http.get("/v1/capabilities").json()["models"]
    assert offered["id"] == model.id == "digits-4x"
    assert offered["sizes"] == [{"name": "32x32", "grid": [8, 8], "patches": 16, "rows_of_patches": 4}]
    assert offered["classes"] == list("0123456789") and not offered["negative_prompt"]
    before = server.metric("bitdance_patches_total"), server.metric("bitdance_stage_launches_total", stage="backbone")
    server.generate(prompt="1", n=3).raise_for_status()
    assert server.metric("bitdance_patches_total") == before[0] + 3 * 16
    assert server.metric("bitdance_stage_launches_total", stage="backbone") == before[1] + 16
    assert server.metric("bitdance_memory_bytes", process="worker-auto") > 10e6
    assert server.metric("bitdance_stage_seconds_total", stage="head") > 0
