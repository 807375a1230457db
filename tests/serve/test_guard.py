"""Who may ask what: the token, the Host, sizes, other sites, and what the log keeps to itself."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from serving import Server

TOKEN = "a-long-secret-token"
SECRET = "sesame-open"


@pytest.fixture(scope="module")
def guarded(digits_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    env = {**os.environ, "BITDANCE_EDGE_TOKEN": TOKEN}
    server = Server(tmp_path_factory.mktemp("guarded") / "log", digits_bundle, "--max-body", 2000, env=env)
    yield server.wait_ready()
    server.stop()


@pytest.mark.parametrize("given", [None, "Bearer wrong", f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer \xff"])
def test_without_the_token_only_health_and_the_page_answer(guarded: Server, given: str | None) -> None:
    headers = httpx.Headers({} if given is None else {b"Authorization": given.encode("latin-1")})
    for path in ("/v1/models", "/v1/capabilities", "/metrics", "/v1/jobs/x", "//v1/models", "/page"):
        answer = guarded.http.get(path, headers=headers)
        assert answer.status_code == 401 and answer.json()["error"]["code"] == "invalid_api_key"
        assert answer.headers["www-authenticate"] == "Bearer"
    assert guarded.http.get("/health", headers=headers).status_code == 200
    assert guarded.http.get("/", headers=headers).status_code == 200


def test_with_the_token_all_answers(guarded: Server) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    assert guarded.http.get("/v1/models", headers=headers).status_code == 200
    answer = guarded.http.post("/v1/images/generations", json={"prompt": "7"}, headers=headers)
    assert answer.status_code == 200


@pytest.mark.parametrize("declared", [True, False])
def test_a_request_over_the_limit_is_refused(guarded: Server, declared: bool) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(100):
            yield b" " * 100

    content = b" " * 10_000 if declared else chunks()
    headers = {"Authorization": f"Bearer {TOKEN}"}
    answer = guarded.http.post("/v1/images/generations", content=content, headers=headers)
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
    assert answer.status_code == 405
    shown = server.http.get("/v1/models", headers={"Origin": "https://other.example"})
    assert not any(name.startswith("access-control") for name in [*answer.headers, *shown.headers])


def test_the_page_may_load_nothing_from_elsewhere(server: Server) -> None:
    page = server.http.get("/")
    assert "default-src 'self'" in page.headers["content-security-policy"]
    folder = Path(__file__).parents[2] / "serve" / "page"
    for file in folder.iterdir():
        text = file.read_text().replace("http://www.w3.org/2000/svg", "")
        assert "http:" not in text and "https:" not in text, file
        assert server.http.get(f"/page/{file.name}").status_code == 200
    assert server.http.get("/no-such-file").json()["error"]["code"] == "not_found"


@pytest.mark.parametrize("options", [(), ("--log-prompts",)])
def test_prompts_are_logged_only_when_asked(
    serve: Callable[..., Server], options: tuple[str, ...], server: Server
) -> None:
    logged = serve(*options).wait_ready() if options else server
    assert logged.generate(prompt="7").status_code == 200
    assert logged.generate(prompt=SECRET).status_code == 400
    assert "generation of 1 by digits-4x: completed" in logged.log
    assert ("prompt '7'" in logged.log) == bool(options)
    assert SECRET not in logged.log


def test_a_server_open_to_others_without_a_token_warns(serve: Callable[..., Server]) -> None:
    server = serve("--host", "0.0.0.0")
    server.http = httpx.Client(base_url=server.url.replace("0.0.0.0", "127.0.0.1"), timeout=60)
    server.wait_ready()
    assert "anyone who reaches" in server.log
    assert server.http.get("/health", headers={"Host": "my.machine"}).status_code == 200
