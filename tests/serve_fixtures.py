"""Servers, most of them started once for the whole test run."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from serving import Server

from bitdance_edge.runtime import Bundle, Pipeline

TOKEN = "a-long-secret-token"


@pytest.fixture(scope="session")
def digits_bundle(digits: Callable[[str], Bundle], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits bundle, in a folder whose name is the id of the model."""
    link = tmp_path_factory.mktemp("served") / "digits-4x"
    link.symlink_to(digits("fp32").folder)
    return link


@pytest.fixture(scope="session")
def reference(digits_bundle: Path) -> Iterator[Pipeline]:
    """The same model without a server, to compare with."""
    with Pipeline.open(digits_bundle) as opened:
        yield opened


@pytest.fixture(scope="session")
def server(digits_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of the digits model with default settings."""
    started = Server(tmp_path_factory.mktemp("server") / "log", digits_bundle)
    yield started.wait_ready()
    started.stop()


@pytest.fixture(scope="session")
def small_server(digits_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that logs prompts, allows many steps, holds one request in its queue, and keeps streams alive often."""
    options = ("--log-prompts", "--max-steps", 1000, "--queue", 1, "--keep-alive", 0.05)
    started = Server(tmp_path_factory.mktemp("small") / "log", digits_bundle, *options)
    yield started.wait_ready()
    started.stop()


@pytest.fixture(scope="session")
def guarded_server(digits_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that requires ``TOKEN`` and takes requests of up to 2000 bytes."""
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "token").write_text(f"{TOKEN}\n", encoding="utf-8")
    started = Server(folder / "log", digits_bundle, "--max-body", 2000, "--token-file", folder / "token")
    yield started.wait_ready()
    started.stop()


@pytest.fixture(scope="session")
def text_server(
    exported: Callable[..., Bundle], digits_bundle: Path, word_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A server of three models: of any text (the default), of classes, and of the words of "a red fish"."""
    folders = (exported("t2i_16x_swiglu").folder, digits_bundle, word_bundle.folder)
    started = Server(tmp_path_factory.mktemp("text") / "log", *folders)
    yield started.wait_ready()
    started.stop()


@pytest.fixture(scope="session")
def attacked(digits_bundle: Path, word_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of the digits model and of one of text, with default limits."""
    started = Server(tmp_path_factory.mktemp("attacked") / "log", digits_bundle, word_bundle.folder)
    yield started.wait_ready()
    assert "Traceback" not in started.log
    started.stop()


@pytest.fixture
def serve(digits_bundle: Path, tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """``serve("--queue", 1)`` starts a server with options for one test."""
    started: list[Server] = []

    def start(*options: object, env: dict[str, str] | None = None) -> Server:
        started.append(Server(tmp_path / f"log{len(started)}", digits_bundle, *options, env=env))
        return started[-1]

    yield start
    for each in started:
        if each.process.poll() is None:
            each.stop()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """Threads for concurrent requests."""
    with ThreadPoolExecutor(16) as threads:
        yield threads
