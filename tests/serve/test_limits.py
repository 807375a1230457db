"""Hostile requests: what they hold is bounded, and meanwhile the server answers others."""

import base64
import inspect
import io
import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.routing import APIRoute
from PIL import Image
from serving import Server, wait_until
from starlette.routing import Route
from watching import Watch

from bitdance_edge.serve.app import ROUTES, create_app
from bitdance_edge.serve.service import Service
from bitdance_edge.serve.settings import ServeSettings

MB = 1_000_000
HELD = 60  # connections
SURROGATE = b'"\\ud800"'


def connected(server: Server) -> socket.socket:
    return socket.create_connection((server.http.base_url.host, server.http.base_url.port or 80), timeout=60)


def answer(connection: socket.socket) -> bytes | None:
    """What the server has sent, empty if it has closed the connection, or None if it waits for more."""
    connection.setblocking(False)
    try:
        return connection.recv(65536)
    except BlockingIOError:
        return None
    except ConnectionResetError:
        return b""


def black(width: int, height: int) -> str:
    file = io.BytesIO()
    Image.new("RGB", (width, height)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def test_routes_dependencies_and_handlers_are_coroutines(digits_bundle: Path) -> None:
    """Plain functions run in threads, which may get no turn until a hostile body is parsed."""
    app = create_app(Service(ServeSettings(bundles=(digits_bundle,))))
    routes = [route for module in ROUTES for route in module.router.routes if isinstance(route, APIRoute)]
    called = [dependency.call for route in routes for dependency in (route.dependant, *route.dependant.dependencies)]
    page = [route.endpoint for route in app.routes if isinstance(route, Route) and route.path == "/"]
    assert len(called) > 2 * len(page) == 2
    for function in (*called, *page, *app.exception_handlers.values()):
        assert inspect.iscoroutinefunction(function), function


@pytest.mark.serial
@pytest.mark.parametrize("path", ["/v1/images/generations", "/v1/jobs"])
@pytest.mark.parametrize("field", ["prompt", "negative_prompt", "model", "size", "user"])
def test_a_long_text_is_refused_before_anything_is_done_with_it(attacked: Server, path: str, field: str) -> None:
    with Watch(attacked) as watch:
        asked = {"model": "words", "prompt": "fish", field: "fish " * 3_000_000}
        answer = attacked.http.post(path, json=asked)
    assert answer.status_code in (400, 413) and len(answer.content) < 2048, answer.text[:200]
    assert watch.grown < 100 * MB


@pytest.mark.serial
@pytest.mark.parametrize("body", ["keys", "depth", "numbers"])
def test_json_of_many_values_is_refused(attacked: Server, body: str) -> None:
    many = {
        "keys": lambda: json.dumps({f"key{i}": i for i in range(380_000)}),
        "depth": lambda: '{"prompt":' + "[" * 2_000_000,
        "numbers": lambda: '{"prompt": "7", "seed": ' + "9" * 2_000_000 + "}",
    }[body]()
    with Watch(attacked) as watch:
        headers = {"Content-Type": "application/json"}
        answer = attacked.http.post("/v1/tokens", content=many.encode(), headers=headers)
    assert answer.status_code == 400 and len(answer.content) < 2048, answer.text[:200]
    assert watch.grown < 60 * MB


@pytest.mark.serial
def test_pictures_are_decoded_one_at_a_time_and_their_memory_is_returned(
    attacked: Server, pool: ThreadPoolExecutor
) -> None:
    largest, larger = black(4000, 4000), black(8000, 8000)

    def status(image: str) -> int:
        return attacked.http.post("/v1/tokens", json={"image": image}).status_code

    assert status(larger) == 400
    with Watch(attacked) as watch:
        assert list(pool.map(status, [largest] * 8)) == [200] * 8
    assert watch.grown < 200 * MB
    wait_until(lambda: watch.kept() < 60 * MB, seconds=10)


@pytest.mark.serial
def test_held_connections_keep_little_memory_and_nobody_out(attacked: Server) -> None:
    size = 16 * 2**20
    head = f"POST /v1/tokens HTTP/1.1\r\nHost: localhost\r\nContent-Length: {size}\r\n\r\n".encode()
    begun = head + b" " * (size - 1)
    started = time.monotonic()
    slow = [connected(attacked) for _ in range(HELD)]
    for connection in slow:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Slow: ")
    with Watch(attacked) as watch:
        held = [connected(attacked) for _ in range(HELD)]
        answers, ended, reset = [b""] * HELD, set[int](), set[int]()
        for index, connection in enumerate(held):
            try:
                connection.sendall(begun)
            except OSError:  # it was sent too slowly for the server to read it on; the answer may be lost
                ended.add(index)
                reset.add(index)

        def refused() -> bool:
            for index in set(range(HELD)) - ended:
                if (received := answer(held[index])) == b"":
                    ended.add(index)
                answers[index] += received or b""
            return len(ended) > HELD - 5

        wait_until(refused, seconds=20)  # a refused body is read on for a while, so that its client sees the answer
        assert len(reset) < HELD // 2
        for index in ended - reset:
            assert answers[index].startswith(b"HTTP/1.1 503 ") and b'"busy"' in answers[index], answers[index]
        assert attacked.generate(prompt="7", num_inference_steps=1).status_code == 200
        idle = [connected(attacked) for _ in range(300)]
        while None in [answer(connection) for connection in slow]:
            assert time.monotonic() - started < 20
            for connection in slow[::2]:
                with suppress(OSError):
                    connection.send(b"x")
            time.sleep(0.2)
        assert time.monotonic() - started > 8
    assert watch.grown < 150 * MB
    for connection in (*slow, *held, *idle):
        connection.close()


@pytest.mark.serial
def test_memory_is_flat_over_requests_of_one_connection(attacked: Server) -> None:
    request = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"

    def ask(times: int) -> None:
        for _ in range(times // 10):
            connection.sendall(request * 10)
            answered = 0
            while answered < 10:
                answered += connection.recv(65536).count(b'"alive"')

    with connected(attacked) as connection:
        ask(1000)
        with Watch(attacked) as watch:
            ask(10_000)
        assert watch.kept() < MB


@pytest.mark.parametrize(
    ("path", "field"),
    [
        *(("/v1/images/generations", name) for name in ("prompt", "negative_prompt", "model", "size", "user")),
        *(("/v1/jobs", name) for name in ("prompt", "sampler", "output_format")),
        *(("/v1/tokens", name) for name in ("image", "model", "size")),
        ("/v1/images/generations", "\\udc00"),
    ],
)
def test_a_lone_surrogate_is_refused(server: Server, path: str, field: str) -> None:
    body = b'{"prompt": "7", "' + field.encode() + b'": ' + SURROGATE + b"}"
    answer = server.http.post(path, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400 and answer.json()["error"]["code"] == "invalid_json"


@pytest.mark.parametrize(
    ("method", "path", "asked"),
    [
        ("GET", "/v1/jobs/" + "x" * 8000, None),
        ("GET", "/v1/models/" + "%F0%9F%98%80" * 600, None),
        ("GET", "/" + "%22" * 3000, None),
        ("POST", "/v1/images/generations", {"prompt": "7", "\U0001f600" * 10_000: 1}),
        ("POST", "/v1/images/generations", {"prompt": "\x01" * 4000}),
        ("POST", "/v1/images/generations", {"prompt": "7", "sampler": "\x01" * 10_000}),
        ("POST", "/v1/images/generations", {"prompt": "7", "seed": "9" * 10_000}),
        ("POST", "/v1/tokens", {"image": "!" * 60_000}),
        ("POST", "/sdapi/v1/txt2img", {"prompt": "\x01" * 4000}),
        ("GET", "/sdapi/v1/" + "%22" * 3000, None),
    ],
)
def test_no_error_is_over_two_kilobytes(server: Server, method: str, path: str, asked: Any) -> None:
    answer = server.http.request(method, path, json=asked)
    assert 400 <= answer.status_code < 500 and len(answer.content) < 2048
    assert answer.json()["error"]["message"]


def test_a_host_header_of_any_bytes_is_refused_shortly(server: Server) -> None:
    answer = httpx.get(f"{server.url}/health", headers={"Host": "x" * 5000})
    assert answer.status_code == 421 and len(answer.content) < 2048
