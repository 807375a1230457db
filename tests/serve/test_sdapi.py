"""/sdapi/v1 with the requests of its clients, as their sources build them."""

import asyncio
import base64
import io
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from serve_fixtures import TOKEN
from serving import Server, wait_until

from bitdance_edge.runtime import Bundle, Pipeline, Request, request_from_settings

# SillyTavern: public/scripts/extensions/stable-diffusion/index.js, generateAutoImage; src/endpoints/stable-diffusion.js
# passes the body on as it is, with url and auth.
SILLY_TAVERN: dict[str, Any] = {
    "url": "http://localhost:8000",
    "auth": "",
    "prompt": "a red fish",
    "negative_prompt": "a fish",
    "sampler_name": "Euler a",
    "scheduler": "Automatic",
    "steps": 2,
    "cfg_scale": 7,
    "width": 512,
    "height": 512,
    "restore_faces": False,
    "enable_hr": False,
    "hr_upscaler": "Latent",
    "hr_scale": 1.0,
    "hr_additional_modules": [],
    "denoising_strength": 0.7,
    "hr_second_pass_steps": 0,
    "seed": 5,
    "override_settings": {"CLIP_stop_at_last_layers": 1},
    "override_settings_restore_afterwards": True,
    "clip_skip": 1,
    "save_images": True,
    "send_images": True,
    "do_not_save_grid": False,
    "do_not_save_samples": False,
}
# LibreChat: api/app/clients/tools/structured/StableDiffusion.js, with its 22 steps.
LIBRE_CHAT: dict[str, Any] = {
    "prompt": "a red fish",
    "negative_prompt": "fish",
    "cfg_scale": 4.5,
    "steps": 22,
    "width": 1024,
    "height": 1024,
}
# Open WebUI: backend/open_webui/routers/images.py, engine automatic1111.
OPEN_WEBUI: dict[str, Any] = {"prompt": "a red fish", "batch_size": 2, "width": 512, "height": 512, "steps": 2}


@pytest.fixture(scope="module")
def web_ui(text_server: Server) -> Callable[..., httpx.Response]:
    """``web_ui("GET", "options")`` asks the server of text models, as the client that has chosen the model of words."""

    def ask(method: str, path: str, **options: Any) -> httpx.Response:
        return text_server.http.request(method, f"/sdapi/v1/{path}", **options)

    ask("POST", "options", json={"sd_model_checkpoint": "words"}).raise_for_status()
    return ask


def pixels(file: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(file))))


def test_silly_tavern_lists_what_it_offers_and_makes_an_image(
    web_ui: Callable[..., httpx.Response], word_bundle: Bundle
) -> None:
    assert web_ui("GET", "options").json()["sd_model_checkpoint"] == "words"
    assert "words" in [model["title"] for model in web_ui("GET", "sd-models").json()]
    assert [sampler["name"] for sampler in web_ui("GET", "samplers").json()] == ["sde", "ode"]
    for lists in ("schedulers", "upscalers", "latent-upscale-modes", "sd-vae"):
        assert isinstance(web_ui("GET", lists).json(), list)
    progress = web_ui("GET", "progress").json()
    assert progress["progress"] == 0.0 and progress["state"]["job_count"] == 0
    answer = web_ui("POST", "txt2img", json=SILLY_TAVERN)
    assert answer.status_code == 200, answer.text
    with Pipeline.open(word_bundle.folder) as pipeline:
        asked = Request(prompts=["a red fish"], negative_prompt="a fish", steps=2, guidance=7.0, seed=5, size="64x64")
        (want,) = pipeline.generate(asked)
    assert want.pixels is not None and np.array_equal(pixels(answer.json()["images"][0]), want.pixels)


def test_libre_chat_reads_info_and_a_png_carries_its_parameters(web_ui: Callable[..., httpx.Response]) -> None:
    answer = web_ui("POST", "txt2img", json=LIBRE_CHAT).json()
    info = json.loads(answer["info"])
    assert (info["width"], info["height"]) == (64, 64) and info["steps"] == 22
    prompt, negative, settings = info["infotexts"][0].split("\n")
    assert (prompt, negative) == ("a red fish", "Negative prompt: fish")
    assert settings.startswith(f"Steps: 22, Sampler: sde, CFG scale: 4.5, Seed: {info['seed']}, Size: 64x64, ")
    with Image.open(io.BytesIO(base64.b64decode(answer["images"][0]))) as image:
        assert image.info["parameters"] == info["infotexts"][0]
        assert request_from_settings(json.loads(image.info["bitdance"])).seed == info["seed"]


def test_open_webui_chooses_a_model_and_makes_two_images(web_ui: Callable[..., httpx.Response]) -> None:
    models = web_ui("GET", "sd-models").json()
    assert {"title", "model_name"} <= models[0].keys()
    options = web_ui("GET", "options").json()
    options["sd_model_checkpoint"] = "words"  # it sends all options back with this one changed
    web_ui("POST", "options", json=options).raise_for_status()
    answer = web_ui("POST", "txt2img", json=OPEN_WEBUI).json()
    assert len(answer["images"]) == 2
    first, second = json.loads(answer["info"])["all_seeds"]
    assert second == first + 1


def test_the_sampler_seed_and_model_of_a_request(server: Server, reference: Pipeline) -> None:
    asked = {
        "prompt": "7",
        "negative_prompt": "ugly",  # of no meaning to a model of classes
        "seed": "4",
        "steps": "3",
        "cfg_scale": 0,
        "sampler_name": "ODE",
        "n_iter": 2,
        "override_settings": {"sd_model_checkpoint": "digits-4x", "sd_vae": None},
    }
    answer = server.http.post("/sdapi/v1/txt2img", json=asked).json()
    wanted = reference.generate(Request(classes=["7"], count=2, seed=4, steps=3, guidance=1.0, sampler="ode"))
    for file, want in zip(answer["images"], wanted, strict=True):
        assert want.pixels is not None and np.array_equal(pixels(file), want.pixels)
    drawn = {
        json.loads(server.http.post("/sdapi/v1/txt2img", json={"prompt": "7", "seed": -1, "steps": 1}).json()["info"])[
            "seed"
        ]
        for _ in range(2)
    }
    assert len(drawn) == 2


@pytest.mark.parametrize(
    ("asked", "status", "says"),
    [
        ({}, 400, "prompt is missing"),
        ({"prompt": "horse"}, 400, "'horse'"),
        ({"prompt": "7", "width": 0, "height": 10**9}, 400, "width"),
        ({"prompt": "7", "batch_size": 10**6}, 400, "1 to 10"),
        ({"prompt": "7", "seed": "many"}, 400, "seed is 'many'; it must be a whole number"),
        ({"prompt": "7", "override_settings": {"sd_model_checkpoint": "v1-5"}}, 404, "digits-4x"),
        ({"prompt": "7", "override_settings": 3}, 400, "an object"),
    ],
)
def test_a_wrong_request_is_told_what_is_wrong(server: Server, asked: dict[str, Any], status: int, says: str) -> None:
    answer = server.http.post("/sdapi/v1/txt2img", json=asked)
    assert answer.status_code == status and says in answer.json()["error"]["message"], answer.text
    assert answer.json()["detail"] == answer.json()["error"]["message"]  # where the web UI's own API has it


def test_interrupt_ends_the_requests_that_progress_shows(server: Server, pool: ThreadPoolExecutor) -> None:
    slow = {"prompt": "1", "steps": 200, "batch_size": 10}
    running = pool.submit(server.http.post, "/sdapi/v1/txt2img", json=slow)

    def shown() -> dict[str, Any]:
        return server.http.get("/sdapi/v1/progress").json()

    wait_until(lambda: shown()["progress"] > 0)
    state = shown()["state"]
    assert state["job_count"] == 10 and 0 < state["sampling_step"] < state["sampling_steps"] == 160
    server.http.post("/sdapi/v1/interrupt").raise_for_status()
    assert running.result().json()["error"]["code"] == "cancelled"
    assert shown()["progress"] == 0 and shown()["state"]["job_count"] == 0


def test_a_client_that_leaves_ends_its_request(server: Server) -> None:
    async def leave_midway() -> None:
        async with httpx.AsyncClient(base_url=server.url) as client:
            slow = {"prompt": "1", "steps": 200, "batch_size": 10}
            request = asyncio.create_task(client.post("/sdapi/v1/txt2img", json=slow))
            while server.running() == 0:
                await asyncio.sleep(0.02)
            request.cancel()

    asyncio.run(leave_midway())
    wait_until(lambda: server.running() == 0)


def test_the_token_is_taken_as_the_password_of_basic_authentication(guarded_server: Server) -> None:
    for auth, status in ((("user", TOKEN), 200), (("", TOKEN), 200), (("user", "wrong"), 401), ((TOKEN, ""), 401)):
        assert guarded_server.http.get("/sdapi/v1/options", auth=auth).status_code == status
