"""Hostile forms and pictures: what they hold is bounded, and meanwhile the server answers others."""

import base64
import http.client
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import pytest
from picturing import encoded
from PIL import Image
from serving import Server, wait_until
from watching import Watch

from bitdance_edge.serve.bodies import PORTION

MB = 1_000_000
MUCH = 15 * 2**20  # bytes, below the limit of a body
SIDE = 4096  # pixels across and down of the largest picture
EDITS, VARIATIONS = "/v1/images/edits", "/v1/images/variations"
MULTIPART = "multipart/form-data; boundary=limit"
END = b"--limit--\r\n"


def part(name: str, content: bytes, *, file: bool = False, header: bytes = b"") -> bytes:
    disposition = f'Content-Disposition: form-data; name="{name}"' + ('; filename="a.png"' if file else "")
    return b"--limit\r\n" + disposition.encode() + b"\r\n" + header + b"\r\n" + content + b"\r\n"


def filled(unit: bytes) -> bytes:
    return unit * (MUCH // len(unit))


@cache
def largest(alpha: int | None = None) -> bytes:
    """A PNG of SIDE x SIDE pixels; its lower half is opaque, the upper one as ``alpha`` says."""
    image = Image.new("RGB", (SIDE, SIDE), (200, 100, 0))
    if alpha is not None:
        image.putalpha(
            Image.fromarray(np.repeat(np.array([alpha, 255], np.uint8), SIDE * SIDE // 2).reshape(SIDE, SIDE))
        )
    return encoded(image, "PNG", compress_level=1)


TINY = encoded(Image.new("RGB", (32, 32)), "PNG")
FORMS: dict[str, Callable[[], bytes]] = {
    "a huge field": lambda: part("prompt", filled(b"fish ")),
    "a long prompt": lambda: part("image", TINY, file=True) + part("prompt", b"x" * 65_000),
    "a huge file": lambda: part("image", filled(b"x"), file=True) + part("prompt", b"3"),
    "many fields": lambda: filled(part("prompt", b"")),
    "many files": lambda: filled(part("image", b"", file=True)),
    "long fields": lambda: part("prompt", b"x" * 15_000) * 1000,
    "many headers": lambda: part("image", TINY, file=True, header=filled(b"A: b\r\n")),
    "a long header": lambda: part("image", TINY, file=True, header=b"A: " + filled(b"b") + b"\r\n"),
    "a long name": lambda: part("x" * MUCH, b""),
    "almost boundaries": lambda: part("image", filled(b"\r\n--limi"), file=True),
    "boundaries that end nothing": lambda: part("image", b"\r\n--limitx" * 300_000, file=True),
    "a padded boundary": lambda: part("image", b"\r\n--limit" + b" " * 3_000_000, file=True),
    "boundaries padded a little": lambda: part("image", (b"\r\n--limit" + b" \t" * 120) * 10_000, file=True),
    "a long header name": lambda: part("image", TINY, file=True, header=filled(b"b") + b": a\r\n"),
    "header names without line ends": lambda: b"--limit\r\n" + filled(b"a:"),
    "a preamble": lambda: b"x" * 3_000_000 + b"\r\n" + part("image", TINY, file=True),
    "line ends": lambda: part("image", filled(b"\r"), file=True),
    "no end": lambda: part("image", filled(b"x"), file=True).removesuffix(b"\r\n"),
    "no boundary": lambda: filled(b"\r\n"),
    "much after the end": lambda: END + filled(b"\r\n--"),
}


@pytest.mark.serial
def test_a_form_of_many_or_large_parts_is_refused(attacked: Server) -> None:
    forms = {name: make() + END for name, make in FORMS.items()}
    with Watch(attacked) as watch:
        for path in (EDITS, VARIATIONS):
            for name, form in forms.items():
                answer = attacked.http.post(path, content=form, headers={"Content-Type": MULTIPART})
                assert answer.status_code == 400 and len(answer.content) < 2048, (name, answer.text[:200])
    assert watch.grown < 100 * MB


@pytest.mark.parametrize("place", [1024, PORTION - 100])  # the second is split over two portions
@pytest.mark.parametrize(("padding", "status"), [(256, 200), (257, 400)])
def test_a_boundary_may_be_padded_a_little(attacked: Server, place: int, padding: int, status: int) -> None:
    steps = part("num_inference_steps", b"1")
    first = steps + part("image", TINY + b"\0" * (place - len(steps + part("image", TINY, file=True))), file=True)
    assert len(first) == place
    padded = part("prompt", b"3").replace(b"--limit", b"--limit" + b" " * padding, 1)
    form = first + padded + END
    answer = attacked.http.post(VARIATIONS, content=form, headers={"Content-Type": MULTIPART})
    assert answer.status_code == status, answer.text[:200]
    assert status == 200 or "256 spaces" in answer.json()["error"]["message"]


@pytest.mark.serial
@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "application/json", "text/plain", ""])
def test_no_other_kind_of_form_is_parsed(attacked: Server, kind: str) -> None:
    with Watch(attacked) as watch:
        for body in (filled(b"&"), filled(b"a=&"), b"prompt=3&x=" + filled(b"%")):
            answer = attacked.http.post(EDITS, content=body, headers={"Content-Type": kind})
            assert answer.status_code == 400 and "multipart/form-data" in answer.json()["error"]["message"]
    assert watch.grown < 60 * MB


@pytest.mark.serial
def test_held_forms_keep_little_memory_and_nobody_out(attacked: Server, pool: ThreadPoolExecutor) -> None:
    form = part("image", filled(b"\r\n-"), file=True) + END

    def status(_: int) -> int:
        connection = http.client.HTTPConnection(attacked.url.removeprefix("http://"), timeout=60)
        connection.request("POST", EDITS, form, {"Content-Type": MULTIPART})
        return connection.getresponse().status

    with Watch(attacked) as watch:
        statuses = pool.map(status, range(16))
        assert attacked.generate(prompt="7", num_inference_steps=1).status_code == 200
        assert {400} <= set(statuses) <= {400, 503}
    assert watch.grown < 200 * MB


ASKED = part("prompt", b"3") + part("num_inference_steps", b"1") + END
PICTURES: dict[str, tuple[Callable[[], bytes], int]] = {
    "varied": (lambda: part("image", largest(), file=True), 200),
    "half seen": (lambda: part("image", largest(130), file=True), 200),
    "half transparent": (lambda: part("image", largest(0), file=True), 200),
    "a mask": (lambda: part("image", largest(), file=True) + part("mask", largest(0), file=True), 200),
    "a mask of colours": (lambda: part("image", TINY, file=True) + part("mask", largest(), file=True), 400),
    "cut off": (lambda: part("image", largest(130)[:-1000], file=True), 400),
}


@pytest.mark.serial
@pytest.mark.parametrize("name", PICTURES)
def test_pictures_of_forms_are_decoded_one_at_a_time(attacked: Server, pool: ThreadPoolExecutor, name: str) -> None:
    make, wanted = PICTURES[name]
    form, paths = make() + ASKED, [EDITS] * 3 if "mask" in name else [EDITS, VARIATIONS, EDITS]

    def status(path: str) -> int:
        return attacked.http.post(path, content=form, headers={"Content-Type": MULTIPART}).status_code

    with Watch(attacked) as watch:
        assert set(pool.map(status, paths)) == {wanted}
    assert watch.grown < 200 * MB
    wait_until(lambda: watch.kept() < 60 * MB, seconds=10)


def base64_of(content: bytes) -> str:
    return base64.b64encode(content).decode()


JSON: dict[str, Callable[[str], dict[str, Any]]] = {
    "/v1/tokens": lambda image: {"image": image},
    "/v1/jobs": lambda image: {"prompt": "3", "edit": {"image": image, "strength": 0.5}},
    "/sdapi/v1/img2img": lambda image: {"prompt": "3", "init_images": [image], "denoising_strength": 0.5, "steps": 1},
}
TEXTS: dict[str, Callable[[], str]] = {
    "no base64": lambda: "!" * MUCH,
    "spaces": lambda: "A " * (MUCH // 2),
    "no picture": lambda: "A" * MUCH,
    "not ASCII": lambda: "Ä" * (MUCH // 8),
    "data URL": lambda: "data:" + "x" * MUCH,
}


@pytest.mark.serial
@pytest.mark.parametrize("path", JSON)
def test_large_texts_in_base64_are_refused(attacked: Server, path: str) -> None:
    bodies = {name: json.dumps(JSON[path](make()), ensure_ascii=False).encode() for name, make in TEXTS.items()}
    with Watch(attacked) as watch:
        for name, body in bodies.items():
            answer = attacked.http.post(path, content=body, headers={"Content-Type": "application/json"})
            assert answer.status_code == 400 and len(answer.content) < 2048, (name, answer.text[:200])
    assert watch.grown < 150 * MB


@pytest.mark.serial
@pytest.mark.parametrize("path", ["/v1/jobs", "/sdapi/v1/img2img"])
def test_large_pictures_in_json_are_decoded_one_at_a_time(
    attacked: Server, pool: ThreadPoolExecutor, path: str
) -> None:
    asked = {**JSON[path](base64_of(largest(0)))}
    if path == "/v1/jobs":
        asked["edit"]["mask"] = base64_of(encoded(Image.fromarray(np.eye(SIDE, dtype=np.uint8) * 255), "PNG"))
    else:
        asked["mask"] = base64_of(largest(0))
    body = json.dumps(asked).encode()

    def status(_: int) -> int:
        return attacked.http.post(path, content=body, headers={"Content-Type": "application/json"}).status_code

    with Watch(attacked) as watch:
        assert set(pool.map(status, range(3))) <= {200, 202}
    assert watch.grown < 200 * MB
    wait_until(lambda: watch.kept() < 60 * MB, seconds=10)


@pytest.mark.serial
@pytest.mark.parametrize("field", ["prompt", "negative_prompt", "sampler_name", "init_images", "mask"])
def test_long_texts_of_web_uis_are_refused(attacked: Server, field: str) -> None:
    asked: dict[str, Any] = {"prompt": "3", "init_images": [base64_of(TINY)]}
    asked[field] = "fish " * 3_000_000
    body = json.dumps(asked).encode()
    with Watch(attacked) as watch:
        headers = {"Content-Type": "application/json"}
        answer = attacked.http.post("/sdapi/v1/img2img", content=body, headers=headers)
    assert answer.status_code in (400, 413) and len(answer.content) < 2048, answer.text[:200]
    assert watch.grown < 100 * MB
