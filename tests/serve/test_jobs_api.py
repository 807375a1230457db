"""Jobs and tokens: images that are fetched later, completed from given rows, or cancelled."""

import asyncio
import base64
import io
import json
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from serving import Server, wait_until

from bitdance_edge.runtime import Pipeline, Preview, Request
from bitdance_edge.serve.errors import ApiError
from bitdance_edge.serve.jobs import KEPT_SECONDS, Jobs

SLOW = {"num_inference_steps": 200, "n": 10}


def file_of(pixels: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def pixels_of(file: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(file))).convert("RGB"))


def create(server: Server, **asked: Any) -> str:
    answer = server.http.post("/v1/jobs", json=asked)
    assert answer.status_code == 202, answer.text
    assert answer.headers["location"] == f"/v1/jobs/{answer.json()['id']}"
    return answer.json()["id"]


def watched(server: Server, job: str) -> Iterator[tuple[str, dict[str, Any]]]:
    with server.http.stream("GET", f"/v1/jobs/{job}/events") as answer:
        name = ""
        for line in answer.iter_lines():
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: "):
                yield name, json.loads(line.removeprefix("data: "))


@pytest.fixture(scope="session")
def seven(reference: Pipeline) -> np.ndarray:
    (image,) = reference.generate(Request(classes=["7"], seed=4))
    assert image.pixels is not None
    return image.pixels


def test_a_job_is_watched_patch_by_patch_and_fetched_later(server: Server, reference: Pipeline) -> None:
    job = create(server, prompt="5", seed=3, n=2, preview_every=4, num_inference_steps=60)
    events = list(watched(server, job))
    previews = [data for name, data in events if name == "job.preview"]
    assert {data["index"] for data in previews} == {0, 1} and {data["patch"] for data in previews} <= {4, 8, 12}
    assert len({data["b64_json"] for data in previews}) == len(previews) >= 2
    name, last = events[-1]
    assert name == "job.completed" and last == server.http.get(f"/v1/jobs/{job}").json()
    assert last["patches_done"] == last["patches"] == 32 and last["timing"]["stages"]["backbone"]["launches"] == 16
    wanted = reference.generate(Request(classes=["5"], seed=3, count=2, steps=60))
    for data, want in zip(last["data"], wanted, strict=True):
        assert want.pixels is not None and np.array_equal(pixels_of(data["b64_json"]), want.pixels)


def test_fast_previews_are_those_of_the_runtime(server: Server, reference: Pipeline) -> None:
    job = create(server, prompt="5", seed=3, n=2, preview_every=4, preview_kind="fast", num_inference_steps=60)
    previews = [data for name, data in watched(server, job) if name == "job.preview"]
    asked = Request(classes=["5"], seed=3, count=2, steps=60, preview_every=4, preview_kind="fast")
    wanted = {event.patch: event.pixels for event in reference.stream(asked) if isinstance(event, Preview)}
    assert previews and {data["patch"] for data in previews} <= wanted.keys()
    for data in previews:
        assert np.array_equal(pixels_of(data["b64_json"]), wanted[data["patch"]][data["index"]])


def test_a_job_can_ask_for_the_published_settings_and_the_other_sampler(server: Server, reference: Pipeline) -> None:
    published = server.http.get("/v1/capabilities").json()["models"][0]["published"]
    job = create(server, prompt="5", seed=3, published=True, sampler="ode", guidance_schedule="linear")
    *_, (_, state) = watched(server, job)
    assert (state["num_inference_steps"], state["guidance_scale"]) == (
        published["num_inference_steps"],
        published["guidance_scale"],
    )
    assert (state["sampler"], state["guidance_schedule"]) == ("ode", "linear")
    asked = Request(classes=["5"], seed=3, published=True, sampler="ode", guidance_schedule="linear")
    (image,) = reference.generate(asked)
    assert image.pixels is not None and np.array_equal(pixels_of(state["data"][0]["b64_json"]), image.pixels)
    refused = server.http.post("/v1/jobs", json={"prompt": "5", "sampler": "euler"})
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "sampler"


def test_a_cancelled_job_stops_at_its_next_patch(server: Server) -> None:
    before = server.metric("bitdance_patches_total")
    job = create(server, prompt="5", **SLOW)
    wait_until(lambda: server.http.get(f"/v1/jobs/{job}").json()["patches_done"] > 0)
    answer = server.http.post(f"/v1/jobs/{job}/cancel").json()
    assert answer["status"] == "cancelled" and answer["error"]["code"] == "cancelled"
    wait_until(lambda: server.running() == 0)
    assert server.metric("bitdance_patches_total") - before < answer["patches"]
    server.generate(prompt="1", num_inference_steps=1).raise_for_status()
    assert server.http.post(f"/v1/jobs/{job}/cancel").json() == answer
    assert list(watched(server, job))[-1] == ("job.cancelled", answer)


def test_an_image_is_tokenised_and_completed_from_its_first_rows(
    server: Server, reference: Pipeline, seven: np.ndarray
) -> None:
    answer = server.http.post("/v1/tokens", json={"image": f"data:image/png;base64,{file_of(seven)}"})
    assert answer.status_code == 200, answer.text
    tokens = answer.json()
    assert np.array_equal(pixels_of(tokens["image"]), reference.reconstruct(seven[None])[0])
    assert tokens["grid"] == [8, 8] and tokens["bits"] == 8
    job = create(server, prompt="7", seed=6, prefix={"tokens": tokens["tokens"], "patches": 8})
    (data,) = list(watched(server, job))[-1][1]["data"]
    prefix = reference.tokenize(seven[None])[0][: 8 * 4]
    (want,) = reference.generate(Request(classes=["7"], seed=6, prefix=prefix))
    assert want.pixels is not None and np.array_equal(pixels_of(data["b64_json"]), want.pixels)


def test_a_prefix_of_no_patches_is_none(server: Server) -> None:
    nothing = {"tokens": base64.b64encode(bytes(64)).decode(), "patches": 0}
    job = create(server, prompt="7", seed=6, prefix=nothing)
    assert list(watched(server, job))[-1][1]["data"] == server.generate(prompt="7", seed=6).json()["data"]


def test_the_bits_in_raster_order_are_those_of_the_grid(server: Server, reference: Pipeline, seven: np.ndarray) -> None:
    answer = server.http.post("/v1/tokens", json={"image": file_of(seven)}).json()
    packed = np.frombuffer(base64.b64decode(answer["grid_tokens"]), np.uint8)
    shown = np.unpackbits(packed).reshape(8, 8, 8) * 2 - 1.0
    tokens = reference.tokenize(seven[None])[0]  # by squares of 2 x 2
    for place, token in enumerate(tokens):
        patch, inside = divmod(place, 4)
        assert np.array_equal(shown[patch // 4 * 2 + inside // 2, patch % 4 * 2 + inside % 2], token)


@pytest.mark.parametrize(
    ("image", "says"),
    [("!!", "base64"), (base64.b64encode(b"not an image").decode(), "PNG"), ("", "at least 1")],
)
def test_what_is_no_image_is_refused(server: Server, image: str, says: str) -> None:
    answer = server.http.post("/v1/tokens", json={"image": image})
    assert answer.status_code == 400 and says in answer.json()["error"]["message"]
    assert answer.json()["error"]["param"] == "image"


def test_a_truncated_image_is_refused(server: Server, seven: np.ndarray) -> None:
    half = base64.b64encode(base64.b64decode(file_of(seven))[:200]).decode()
    answer = server.http.post("/v1/tokens", json={"image": half})
    assert answer.status_code == 400 and answer.json()["error"]["code"] == "invalid_image"


@pytest.mark.parametrize(
    ("prefix", "says"),
    [
        ({"tokens": "!", "patches": 1}, "base64"),
        ({"tokens": "AAAA", "patches": 1}, "3 bytes"),
        ({"tokens": base64.b64encode(bytes(64)).decode(), "patches": 17}, "16"),
        ({"tokens": base64.b64encode(bytes(64)).decode(), "patches": 1, "rows": 1}, "rows"),
    ],
)
def test_a_wrong_prefix_is_refused(server: Server, prefix: dict[str, Any], says: str) -> None:
    answer = server.http.post("/v1/jobs", json={"prompt": "7", "prefix": prefix})
    assert answer.status_code == 400 and says in answer.json()["error"]["message"]


def test_an_image_is_redrawn_in_part_and_varied(server: Server, reference: Pipeline, seven: np.ndarray) -> None:
    mask = np.zeros((32, 32), bool)
    mask[6:20, 9:27] = True
    white = file_of(np.where(mask, np.uint8(255), np.uint8(0)))
    edits = (
        {"image": file_of(seven), "mask": white, "candidates": 3},
        {"image": file_of(seven), "mask": white, "strength": 0.8, "blend": False},
        {"image": file_of(seven), "strength": 0.7},
        {"image": file_of(seven), "strength": [0.5, 1] * 8},
    )
    for edit in edits:
        job = create(server, prompt="7", seed=6, n=2, edit=edit, preview_every=4)
        done = list(watched(server, job))[-1][1]
        assert done["patches"] == done["patches_done"] >= 32
        fields = {key: value for key, value in edit.items() if key != "image"}
        given = {**fields, "mask": mask} if "mask" in fields else fields
        wanted = reference.generate(Request(classes=["7"], count=2, seed=6, init=seven, **given))
        for data, want in zip(done["data"], wanted, strict=True):
            assert want.pixels is not None and np.array_equal(pixels_of(data["b64_json"]), want.pixels)
            assert data["seed"] == want.seed


def test_tokens_of_an_image_are_varied(server: Server, reference: Pipeline, seven: np.ndarray) -> None:
    tokens = server.http.post("/v1/tokens", json={"image": file_of(seven)}).json()["tokens"]
    job = create(server, prompt="3", seed=6, edit={"tokens": tokens, "strength": 0.6})
    (data,) = list(watched(server, job))[-1][1]["data"]
    (want,) = reference.generate(Request(classes=["3"], seed=6, init=seven, strength=0.6))
    assert want.pixels is not None and np.array_equal(pixels_of(data["b64_json"]), want.pixels)


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        ({}, "needs an image or tokens"),
        ({"image": "SEVEN"}, "give a mask of what to redraw, or a strength"),
        ({"image": "SEVEN", "tokens": "AAAA", "strength": 1}, "and not both"),
        ({"image": "!", "strength": 1}, "edit.image is not base64"),
        ({"tokens": "AAAA", "strength": 1}, "edit.tokens has 3 bytes"),
        ({"image": "SEVEN", "strength": 1.5}, "strength is 1.5; it must be from 0"),
        ({"image": "SEVEN", "strength": [0.5, 0.5]}, "strength has 2 values"),
        ({"image": "SEVEN", "mask": "SEVEN"}, "edit.mask is a picture of mode RGB with colors"),
        ({"image": "SEVEN", "mask": "BLACK"}, "paint white what to redraw"),
        ({"image": "SEVEN", "mask": "WHITE"}, "omit the mask"),
        ({"image": "SEVEN", "mask": "SMALL"}, "edit.mask is 16x16; a mask must be 32x32"),
        ({"image": "SEVEN", "strength": 0.5, "candidates": 2}, "omit candidates"),
    ],
)
def test_a_wrong_edit_is_refused(server: Server, seven: np.ndarray, edit: dict[str, Any], says: str) -> None:
    colored = seven.copy()
    colored[..., 2] = 255 - colored[..., 2]
    files = {
        "SEVEN": file_of(colored),
        "BLACK": file_of(np.zeros((32, 32), np.uint8)),
        "WHITE": file_of(np.full((32, 32), 255, np.uint8)),
        "SMALL": file_of(np.eye(16, dtype=np.uint8) * 255),
    }
    sent = {key: files.get(value, value) if isinstance(value, str) else value for key, value in edit.items()}
    answer = server.http.post("/v1/jobs", json={"prompt": "7", "edit": sent})
    assert answer.status_code == 400 and says in answer.json()["error"]["message"], answer.text
    assert answer.json()["error"]["param"].startswith("edit")


def test_an_unknown_job_is_not_found(server: Server) -> None:
    for answer in (
        server.http.get("/v1/jobs/job_x"),
        server.http.post("/v1/jobs/job_x/cancel"),
        server.http.get("/v1/jobs/job_x/events"),
    ):
        assert answer.status_code == 404 and answer.json()["error"]["code"] == "job_not_found"


def found(jobs: Jobs, job_id: str) -> bool:
    try:
        return asyncio.run(jobs.get(job_id)) is not None
    except ApiError as error:
        assert error.status == 404
        return False


def test_finished_jobs_are_dropped_oldest_first_by_age_count_and_size(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic()

    def job(name: str, age: float | None, size: int = 10) -> Any:
        return SimpleNamespace(state=SimpleNamespace(id=name), ended=None if age is None else now - age, bytes=size)

    def kept(*given: Any) -> list[str]:
        jobs = Jobs()
        for each in given:
            asyncio.run(jobs.add(each))
        return [each.state.id for each in given if found(jobs, each.state.id)]

    running = job("running", None)
    assert kept(job("old", KEPT_SECONDS + 1), running, job("new", 1)) == ["running", "new"]
    monkeypatch.setattr("bitdance_edge.serve.jobs.KEPT_JOBS", 2)
    assert kept(job("second", 2), running, job("first", 3), job("last", 1)) == ["second", "running", "last"]
    monkeypatch.setattr("bitdance_edge.serve.jobs.KEPT_BYTES", 50)
    assert kept(job("a", 3, 30), job("b", 2, 30), running) == ["b", "running"]
