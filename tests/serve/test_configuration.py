"""Settings by flag, variable and file; addresses; names of the server; a reload of its bundles."""

import argparse
import shutil
import signal
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from commanding import status_of
from serve_fixtures import TOKEN
from serving import Server, wait_until

from bitdance_edge.commands.serve_options import PREFIX, add_arguments, read_values
from bitdance_edge.runtime import Bundle
from bitdance_edge.serve.address import resolve
from bitdance_edge.serve.errors import ServeError


def values(*arguments: str, **variables: str) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return read_values(parser.parse_args(arguments), {f"{PREFIX}{name}": value for name, value in variables.items()})


def test_a_flag_goes_before_a_variable_and_a_variable_before_the_file(tmp_path: Path) -> None:
    file = tmp_path / "serve.toml"
    file.write_text(
        'bundles = ["digits", "/elsewhere/shapes"]\nqueue = 5\nmax-batch = 6\nmax_steps = 7\nnearest-size = true\n'
        'device = ["cpu"]\nlog-level = "error"\n[alias]\ngpt-image-1 = "shapes"\n',
        encoding="utf-8",
    )
    found = values("--config", str(file), "--queue", "1", MAX_BATCH="2", QUEUE="3")
    assert (found["queue"], found["max_batch"], found["max_steps"], found["max_images"]) == (1, 2, 7, 10)
    assert found["bundles"] == [tmp_path / "digits", Path("/elsewhere/shapes")] and found["device"] == ["cpu"]
    assert found["nearest_size"] is True and found["log_level"] == "error"
    assert found["alias"] == [("gpt-image-1", "shapes")]
    assert values(CONFIG=str(file))["queue"] == 5


def test_variables_hold_lists_and_switches() -> None:
    found = values(BUNDLES="a:b", ALIAS="x=a,y=b", LOG_PROMPTS="yes", NEAREST_SIZE="0", MEMORY="12.5")
    assert found["bundles"] == [Path("a"), Path("b")] and found["alias"] == [("x", "a"), ("y", "b")]
    assert found["log_prompts"] is True and found["nearest_size"] is False and found["memory"] == 12.5
    assert values("bundle")["device"] == ["auto"] and values("a", BUNDLES="b")["bundles"] == [Path("a")]


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"QUEUE": "many"}, "BITDANCE_EDGE_SERVE_QUEUE: 'many' is not a whole number from 1 to 10000"),
        ({"MEMORY": "nan"}, "MEMORY: 'nan' is not a number of MB"),
        ({"TIME_LIMIT": "inf"}, "TIME_LIMIT: 'inf' is not a number of seconds"),
        ({"ALIAS": "a=b,c"}, "ALIAS: 'c' is not NAME=MODEL"),
        ({"QUEU": "3"}, "QUEU: there is no such option; there are bundles, host"),
        ({"LOG_PROMPTS": "maybe"}, "'maybe' is not true or false"),
        ({"LOG_LEVEL": "loud"}, "'loud' is not one of info, warning, error"),
    ],
)
def test_a_wrong_variable_is_named(variables: dict[str, str], says: str) -> None:
    with pytest.raises(ServeError, match=says):
        values(**variables)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("queue = [1]", "queue in .* must be one value"),
        ("queue = {a = 1}", "queue in .* must be one value"),
        ("queue = 0", "queue in .*: '0' is not a whole number from 1"),
        ("colour = 1", "colour in .*: there is no such option"),
        ("queue =", "is not TOML"),
        ("cors = [[1]]", "cors in .* must be a list of values"),
        ("queue = " + "[" * 5000, "is nested too deep"),
        (f"{'x' * 5000} = 1", "^x{80} in .{1,200}: there is no such option"),
        ("bundles = 3", "bundles in .* must be a list of paths, in quotes"),
        ("token-file = true", "token-file in .* must be a path, in quotes"),
        ("max-batch = 2\nmax_batch = 4", "max_batch in .* is given twice, with - and with _"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "serve.toml").write_text(text, encoding="utf-8")
    with pytest.raises(ServeError, match=says):
        values("--config", str(tmp_path / "serve.toml"))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--host", ""], "host is empty"),
        (["--host", "ü" * 70], "which is not found"),
        (["--host", "127.0.0.2"], "add --allow-host 127.0.0.2"),
        (["--host", "no-such-host.invalid"], "choose another --host"),
        (["--port", "65536"], "from 0 to 65535"),
        (["--max-batch", "1000000"], "--max-batch: '1000000' is not a whole number from 1 to 1024"),
        (["--max-prompt", "100000"], "--max-prompt"),
        (["--memory", "nan"], "--memory: 'nan' is not a number of MB"),
        (["--threads", "0"], "--threads: '0'"),
        (["--alias", "name"], "--alias: 'name' is not NAME=MODEL"),
        (["--config", "no-such-file.toml"], "no configuration at no-such-file.toml"),
        (["--cors", "example.org"], "it must be an origin"),
        (["--cors", "https://example.org/page"], "it must be an origin"),
        (["--allow-host", "a b"], "host name"),
        (["--allow-host", "example.org/"], "host name"),
        (["--allow-host", "example.org:80"], "host name as clients send it, without port"),
        (["--allow-host", "*"], "host name"),
        (["--config", ""], "is a folder"),
        ([], "no bundle given"),
    ],
)
def test_what_cannot_be_served_is_refused_at_once(
    arguments: list[str], says: str, digits_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundles = [str(digits_bundle)] if arguments else []
    assert status_of("serve", *bundles, *arguments) in (1, 2)
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert says in line


def test_a_loopback_address_answers_to_its_name_once_it_is_allowed(serve: Callable[..., Server]) -> None:
    server = serve("--host", "127.0.0.2", "--allow-host", "127.0.0.2", "--allow-host", "Images.example")
    assert server.url.startswith("http://127.0.0.2:")
    assert server.http.get("/healthz").json() == {"status": "alive"}
    assert server.http.get("/healthz", headers={"Host": "images.example:443"}).status_code == 200
    refused = server.http.get("/healthz", headers={"Host": "attacker.example"})
    assert refused.status_code == 421 and "Images.example" in refused.json()["error"]["message"]


def test_named_sites_may_read_answers(digits_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(TOKEN, encoding="utf-8")
    arguments = ("--cors", "https://site.example", "--token-file", tmp_path / "token")
    server = Server(tmp_path / "log", digits_bundle, *arguments)
    try:
        site = {"Origin": "https://site.example"}
        asks = {**site, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
        preflight = server.http.options("/v1/jobs", headers=asks)  # browsers send no token with it
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == "https://site.example"
        assert "authorization" in preflight.headers["access-control-allow-headers"].lower()
        for path, status in (("/healthz", 200), ("/v1/models", 401)):
            answer = server.http.get(path, headers=site)
            assert answer.status_code == status
            assert answer.headers["access-control-allow-origin"] == "https://site.example"
        other = {**asks, "Origin": "https://other.example"}
        assert "access-control-allow-origin" not in server.http.options("/v1/jobs", headers=other).headers
        shown = server.http.get("/healthz", headers={"Origin": "https://other.example"})
        assert "access-control-allow-origin" not in shown.headers
    finally:
        server.stop()


def test_head_and_options_answer_without_a_body(server: Server) -> None:
    for path in ("/", "/health", "/v1/models", "/page/main.js", "/openapi.json"):
        whole, head = server.http.get(path), server.http.head(path)
        assert head.status_code == 200 and head.content == b""
        assert head.headers["content-length"] == str(len(whole.content))
        assert server.http.options(path).headers["allow"] == "GET, HEAD, OPTIONS"
    assert server.http.options("/sdapi/v1/options").headers["allow"] == "GET, HEAD, OPTIONS, POST"
    assert server.http.options("/no-such-path").status_code == server.http.head("/no-such-path").status_code == 404
    assert server.http.head("/v1/jobs").status_code == 405
    job = server.http.post("/v1/jobs", json={"prompt": "7", "num_inference_steps": 100}).json()["id"]
    assert server.http.head(f"/v1/jobs/{job}/events").status_code == 200  # at once, not when the job is done
    assert server.http.get(f"/v1/jobs/{job}").json()["status"] != "completed"
    server.http.post(f"/v1/jobs/{job}/cancel").raise_for_status()


def test_readiness_is_not_liveness(serve: Callable[..., Server]) -> None:
    server = serve()
    assert server.http.get("/healthz").status_code == 200
    assert server.http.get("/readyz").status_code == 503
    server.wait_ready()
    assert server.http.get("/readyz").json()["status"] == "ready"


def test_a_reload_takes_the_new_bundle_and_loses_no_request(
    digits_bundle: Path, tmp_path: Path, pool: ThreadPoolExecutor
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(digits_bundle, folder)
    server = Server(tmp_path / "log", folder).wait_ready()
    try:
        slow = [pool.submit(server.generate, prompt=str(i), num_inference_steps=40) for i in range(4)]
        wait_until(lambda: server.running() > 0)
        opened = Bundle.open(folder)
        replace(opened, sampling=replace(opened.sampling, steps=3)).write()
        before = server.worker().pid
        server.process.send_signal(signal.SIGHUP)
        steps = 0
        while steps != 3:  # requests go on meanwhile
            answer = server.generate(prompt="7", seed=1)
            assert answer.status_code == 200, answer.text
            (model,) = server.http.get("/v1/capabilities").json()["models"]
            steps = model["num_inference_steps"]
        assert [each.result().status_code for each in slow] == [200] * 4
        wait_until(lambda: server.log.count("reloaded: model") == 1 and server.worker().pid != before)
        next(folder.glob("onnx/*/head.onnx")).write_bytes(b"x")
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: "the reload failed" in server.log)
        assert server.generate(prompt="7").status_code == 200
        assert "Traceback" not in server.log
    finally:
        assert server.stop() == 0


def test_answers_are_sent_without_delay() -> None:
    """asyncio sets TCP_NODELAY on the connections of a listening socket that names TCP, and of no other."""
    with resolve("127.0.0.1", 0).listen() as listening:
        assert listening.proto == socket.IPPROTO_TCP
