"""Access: the token, the Host, the size of requests, other sites, and prompts in the log."""

from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from serve_fixtures import TOKEN
from serving import Server

SECRET = "sesame-open"


@pytest.mark.parametrize("given", [None, "Bearer wrong", f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer \xff"])
def test_without_the_token_only_health_and_the_page_answer(guarded_server: Server, given: str | None) -> None:
    headers = httpx.Headers({} if given is None else {b"Authorization": given.encode("latin-1")})
    for path in ("/v1/models", "/v1/capabilities", "/metrics", "/v1/jobs/x", "//v1/models", "/page"):
        answer = guarded_server.http.get(path, headers=headers)
        assert answer.status_code == 401 and answer.json()["error"]["code"] == "invalid_api_key"
        assert answer.headers["www-authenticate"] == "Bearer"
    assert guarded_server.http.get("/health", headers=headers).status_code == 200
    assert guarded_server.http.get("/", headers=headers).status_code == 200


def test_with_the_token_all_answers(guarded_server: Server) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    assert guarded_server.http.get("/v1/models", headers=headers).status_code == 200
    answer = guarded_server.http.post("/v1/images/generations", json={"prompt": "7"}, headers=headers)
    assert answer.status_code == 200


@pytest.mark.parametrize("declared", [True, False])
def test_a_request_over_the_limit_is_refused(guarded_server: Server, declared: bool) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(100):
            yield b" " * 100

    content = b" " * 10_000 if declared else chunks()
    headers = {"Authorization": f"Bearer {TOKEN}"}
    answer = guarded_server.http.post("/v1/images/generations", content=content, headers=headers)
    assert answer.status_code == 413 and answer.json()["error"]["code"] == "request_too_large"


def test_a_local_server_answers_to_local_names_only(server: Server) -> None:
    assert server.http.get("/health", headers={"Host": "localhost:8000"}).status_code == 200
    answer = server.http.get("/health", headers={"Host": "attacker.example"})
    assert answer.status_code == 421 and answer.json()["error"]["code"] == "invalid_host"


def test_other_sites_may_not_read_answers(server: Server) -> None:
    answer = server.http.options(
        "/v1/images/generations",
        headers={"Origin": "https://other.example", "Access-Control-Request-Method": "POST"},
    )
    assert answer.status_code == 204 and answer.headers["allow"] == "OPTIONS, POST"
    shown = server.http.get("/v1/models", headers={"Origin": "https://other.example"})
    assert not any(name.startswith("access-control") for name in [*answer.headers, *shown.headers])


def test_the_page_may_load_nothing_from_elsewhere(server: Server) -> None:
    page = server.http.get("/")
    assert "default-src 'self'" in page.headers["content-security-policy"]
    folder = Path(__file__).parents[2] / "serve" / "page"
    for file in folder.iterdir():
        text = file.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert "http:" not in text and "https:" not in text, file
        assert server.http.get(f"/page/{file.name}").status_code == 200
    assert server.http.get("/no-such-file").json()["error"]["code"] == "not_found"


@pytest.mark.parametrize(("name", "shown"), [("server", False), ("small_server", True)])
def test_prompts_are_logged_only_with_log_prompts(name: str, shown: bool, request: pytest.FixtureRequest) -> None:
    logged: Server = request.getfixturevalue(name)
    assert logged.generate(prompt="7").status_code == 200
    assert logged.generate(prompt=SECRET).status_code == 400
    assert "generation of 1 by digits-4x: completed" in logged.log
    assert ("prompt '7'" in logged.log) == shown
    assert SECRET not in logged.log


def test_a_server_open_to_others_without_a_token_warns(serve: Callable[..., Server]) -> None:
    server = serve("--host", "0.0.0.0")
    url = server.url.replace("0.0.0.0", "127.0.0.1")
    assert httpx.get(f"{url}/health", headers={"Host": "my.machine"}).status_code in (200, 503)  # ready or not
    assert "anyone who can reach" in server.log
