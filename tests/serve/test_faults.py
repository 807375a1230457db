"""Faults: a worker that dies, a server that is stopped or killed, a server that cannot start."""

import json
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from commanding import status_of
from serving import Server, wait_until
from test_queue import SLOW

from bitdance_edge.serve.catalog import Catalog
from bitdance_edge.serve.settings import ServeSettings


def streamed(server: Server, **asked: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    with server.http.stream("POST", "/v1/images/generations", json={**asked, "stream": True}) as answer:
        name = ""
        for line in answer.iter_lines():
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: "):
                yield name, json.loads(line.removeprefix("data: "))


def test_killing_the_worker_gives_an_error_event_and_the_next_request_is_answered(serve: Callable[..., Server]) -> None:
    server = serve().wait_ready()
    events = streamed(server, prompt="1", num_inference_steps=200, partial_images=3)
    assert next(events)[0] == "image_generation.partial_image"
    server.worker().kill()
    name, data = list(events)[-1]
    assert name == "error" and data["error"]["code"] == "worker_died"
    answer = server.generate(prompt="7", seed=1)  # at once: it waits for the new worker
    assert answer.status_code == 200, answer.text
    assert server.metric("bitdance_worker_restarts_total") == 1
    assert server.http.get("/health").status_code == 200

    server.worker().kill()  # also one that does nothing
    wait_until(lambda: server.metric("bitdance_worker_restarts_total") == 2)
    assert server.generate(prompt="7", seed=1).json()["data"] == answer.json()["data"]
    assert "Traceback" not in server.log


@pytest.mark.parametrize(("grace", "ending"), [(30, "completed"), (0.1, "error")])
def test_a_stopping_server_finishes_or_cancels_what_runs(
    serve: Callable[..., Server], grace: float, ending: str
) -> None:
    server = serve("--grace", grace).wait_ready()
    worker = server.worker()
    events = streamed(server, prompt="1", num_inference_steps=100, partial_images=3)
    next(events)
    server.process.terminate()
    name, data = list(events)[-1]
    assert name.removeprefix("image_generation.") == ending
    if ending == "error":
        assert data["error"]["code"] == "server_stopping"
    assert server.process.wait(20) == 0
    assert not worker.is_running()
    assert "Traceback" not in server.log


def test_a_worker_does_not_outlive_a_server_that_is_killed(serve: Callable[..., Server]) -> None:
    server = serve().wait_ready()
    worker = server.worker()
    server.http.post("/v1/jobs", json=SLOW)
    wait_until(lambda: server.running() == 1)
    server.process.send_signal(signal.SIGKILL)
    worker.wait(10)


def test_not_ready_before_the_warm_up_image(serve: Callable[..., Server]) -> None:
    server = serve()  # answers as soon as it listens, long before the model is loaded
    health, answer = server.http.get("/health"), server.generate(prompt="7")
    assert health.status_code == 503 and health.json()["status"] == "starting"
    assert answer.status_code == 503 and answer.json()["error"]["code"] == "not_ready"
    assert "retry-after" in answer.headers
    server.wait_ready()
    assert server.generate(prompt="7").status_code == 200


def refused(*arguments: object) -> str:
    """Start a server that must fail; the last line of its standard error."""
    command = [sys.executable, "-m", "bitdance_edge", "serve", *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=60)
    assert result.returncode == 1 and "Traceback" not in result.stderr, result.stderr
    return result.stderr.strip().splitlines()[-1]


def test_settings_that_cannot_be_served_are_refused_in_one_line(
    digits_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusal_of(*arguments: object) -> str:
        assert status_of("serve", *arguments) in (1, 2)
        (line,) = capsys.readouterr().err.strip().splitlines()
        return line

    assert "no bundle at" in refusal_of(tmp_path / "nothing")
    assert "rename one" in refusal_of(digits_bundle, digits_bundle)
    assert "--queue: '0' is not a whole number from 1" in refusal_of(digits_bundle, "--queue", 0)
    assert "--max-steps: '5000' is not a whole number" in refusal_of(digits_bundle, "--max-steps", 5000)
    assert "no token file at" in refusal_of(digits_bundle, "--token-file", tmp_path / "none")
    assert "choose another --host" in refusal_of(digits_bundle, "--host", "192.0.2.1", "--port", 0)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert "choose another --port" in refusal_of(digits_bundle, "--port", taken.getsockname()[1])
    monkeypatch.setenv("BITDANCE_EDGE_TOKEN", "short")
    assert "8 printable" in refusal_of(digits_bundle)
    monkeypatch.setenv("BITDANCE_EDGE_TOKEN", " long enough ")
    assert "begins or ends with a space" in refusal_of(digits_bundle)
    monkeypatch.delenv("BITDANCE_EDGE_TOKEN")
    monkeypatch.setenv("BITDANCE_EDGE_SERVE_DEVICE", "")
    assert "name at least one" in refusal_of(digits_bundle)


def test_without_the_extra_packages_the_error_names_them(digits_bundle: Path) -> None:
    script = (
        "import sys\nsys.modules['uvicorn'] = None\nfrom bitdance_edge.cli import main\n"
        f"raise SystemExit(main(['serve', {str(digits_bundle)!r}]))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, encoding="utf-8", timeout=60)
    assert result.returncode == 1 and "[cpu,serve]'" in result.stderr, result.stderr


def test_a_bundle_that_will_not_load_ends_the_server_with_its_reason(digits_bundle: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(digits_bundle, tmp_path / "broken")
    next(broken.glob("onnx/*/head.onnx")).write_bytes(b"x")
    assert "truncated or altered" in refused(broken, "--port", 0)
    assert "device is 'npu'" in refused(digits_bundle, "--device", "npu", "--port", 0)


def test_images_that_do_not_fit_in_memory_are_refused(serve: Callable[..., Server], digits_bundle: Path) -> None:
    server = serve("--memory", 1).wait_ready()
    answer = server.generate(prompt="7")
    assert answer.status_code == 507 and answer.json()["error"]["code"] == "insufficient_memory"
    roomy = Catalog(ServeSettings(bundles=(digits_bundle,), memory=10**10)).default
    tight = Catalog(ServeSettings(bundles=(digits_bundle,), memory=14 * 10**6)).default
    assert 0 < tight.images_at_once < roomy.images_at_once == 16
