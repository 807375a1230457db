"""The queue: requests that share a batch, are refused, reach the time limit, or whose client disconnects."""

import asyncio
import base64
import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from rounding import is_clear
from serving import Server, wait_until

from bitdance_edge.runtime import Pipeline, Request

SLOW = {"prompt": "1", "num_inference_steps": 200, "n": 10}


def test_requests_of_one_shape_share_a_batch_and_keep_their_own_noise(
    server: Server, reference: Pipeline, pool: ThreadPoolExecutor
) -> None:
    before = server.metric("bitdance_batch_images_count"), server.metric("bitdance_batch_images_sum")
    blocker = pool.submit(server.generate, prompt="0", num_inference_steps=100)  # so that the others meet in the queue
    wait_until(lambda: server.running() == 1)
    asked = [{"prompt": str(digit), "seed": 100 * digit, "num_inference_steps": 5} for digit in range(8)]
    answers = list(pool.map(lambda each: server.generate(**each), asked))
    blocker.result().raise_for_status()
    compared = 0
    for each, answer in zip(asked, answers, strict=True):
        (data,) = answer.json()["data"]
        request = Request(classes=[each["prompt"]], seed=each["seed"], steps=5)
        (alone,) = reference.generate(request)
        got = np.asarray(Image.open(io.BytesIO(base64.b64decode(data["b64_json"]))))
        assert alone.pixels is not None and got.shape == alone.pixels.shape
        if is_clear(reference.bundle, request):  # a batch is another order of summation
            compared += 1
            assert np.abs(got.astype(int) - alone.pixels).max() <= 1
    assert compared
    assert server.metric("bitdance_batch_images_sum") - before[1] == 9
    assert server.metric("bitdance_batch_images_count") - before[0] < 9


def test_a_full_queue_refuses_and_says_when_to_retry(small_server: Server) -> None:
    small, before = small_server, small_server.metric("bitdance_refused_total")
    first = small.http.post("/v1/jobs", json=SLOW).json()["id"]
    wait_until(lambda: small.running() == 1)
    second = small.http.post("/v1/jobs", json={**SLOW, "num_inference_steps": 199}).json()["id"]
    refused = small.generate(prompt="1")
    assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1
    assert refused.json()["error"]["code"] == "queue_full"
    assert small.metric("bitdance_queue_requests") == 1
    assert small.metric("bitdance_refused_total") == before + 1
    assert small.http.post(f"/v1/jobs/{second}/cancel").json()["status"] == "cancelled"  # one that waits leaves at once
    assert small.metric("bitdance_queue_requests") == 0
    small.http.post(f"/v1/jobs/{first}/cancel")
    small.generate(prompt="1").raise_for_status()


def test_a_request_out_of_time_is_ended_and_the_next_one_runs(serve: Callable[..., Server]) -> None:
    hasty = serve("--time-limit", 1.5, "--max-steps", 1000).wait_ready()
    asked = {"prompt": "1", "num_inference_steps": 1000, "n": 4}
    late = hasty.generate(**asked)
    assert late.status_code == 504 and late.json()["error"]["code"] == "time_limit"
    streamed = hasty.generate(**asked, stream=True)
    assert "event: error" in streamed.text and "time_limit" in streamed.text
    wait_until(lambda: hasty.running() == 0)
    assert hasty.generate(prompt="1", num_inference_steps=1).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_its_work_at_the_next_patch(server: Server, stream: bool) -> None:
    patches = server.metric("bitdance_patches_total")
    cancelled = server.metric("bitdance_requests_total", outcome="cancelled")

    async def leave_midway() -> None:
        async with httpx.AsyncClient(base_url=server.url) as client:
            request = asyncio.create_task(client.post("/v1/images/generations", json={**SLOW, "stream": stream}))
            while server.metric("bitdance_patches_total") == patches:
                await asyncio.sleep(0.02)
            request.cancel()

    asyncio.run(leave_midway())
    wait_until(lambda: server.running() == 0)
    assert server.metric("bitdance_patches_total") - patches < 160
    assert server.metric("bitdance_requests_total", outcome="cancelled") == cancelled + 1


def test_leaving_a_shared_batch_leaves_the_others_alone(server: Server, pool: ThreadPoolExecutor) -> None:
    steps: dict[str, Any] = {"num_inference_steps": 120}
    blocker = pool.submit(server.generate, prompt="0", num_inference_steps=60)
    wait_until(lambda: server.running() == 1)
    stays = pool.submit(server.generate, prompt="4", seed=1, **steps)
    leaves = server.http.post("/v1/jobs", json={"prompt": "5", **steps}).json()["id"]
    wait_until(lambda: server.running() == 2)
    assert server.http.post(f"/v1/jobs/{leaves}/cancel").json()["status"] == "cancelled"
    assert stays.result().status_code == blocker.result().status_code == 200
    assert stays.result().json()["data"] == server.generate(prompt="4", seed=1, **steps).json()["data"]


def test_each_device_has_a_worker_and_they_work_at_the_same_time(serve: Callable[..., Server]) -> None:
    server = serve("--device", "auto", "--device", "cpu").wait_ready()
    assert server.http.get("/health").json() == {"status": "ready", "workers": 2, "workers_ready": 2}
    jobs = [server.http.post("/v1/jobs", json={**SLOW, "num_inference_steps": n}).json()["id"] for n in (200, 199)]
    wait_until(lambda: all(server.http.get(f"/v1/jobs/{job}").json()["patches_done"] > 0 for job in jobs))
    for job in jobs:
        server.http.post(f"/v1/jobs/{job}/cancel").raise_for_status()
