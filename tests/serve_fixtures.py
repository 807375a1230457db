"""Servers over the digits model, started once a test run or with options of a test's own."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from serving import Server

from bitdance_edge.runtime import Bundle, Pipeline


@pytest.fixture(scope="session")
def digits_bundle(digits: Callable[[str], Bundle], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits bundle in a folder that gives its model a name."""
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
    """A server with its defaults."""
    started = Server(tmp_path_factory.mktemp("server") / "log", digits_bundle)
    yield started.wait_ready()
    started.stop()


@pytest.fixture
def serve(digits_bundle: Path, tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """``serve("--queue", 1)`` starts a server with options, which ends with the test."""
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
    """Threads for requests that are under way at the same time."""
    with ThreadPoolExecutor(16) as threads:
        yield threads
