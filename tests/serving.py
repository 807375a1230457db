"""A server in a process of its own, as a user starts it."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil

START = 60.0  # seconds until it must be ready
POLL = 0.02  # seconds between two looks


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(POLL)


class Server:
    """``bitdance-edge serve`` on a free port; its standard error goes into a file."""

    def __init__(self, log: Path, *arguments: object, env: dict[str, str] | None = None) -> None:
        self.log_file = log
        command = [sys.executable, "-m", "bitdance_edge", "serve", *map(str, arguments), "--port", "0"]
        with log.open("wb") as errors:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, encoding="utf-8", env=env)
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()
        assert self.url.startswith("http://"), self.log
        self.http = httpx.Client(base_url=self.url, timeout=60)

    @property
    def log(self) -> str:
        return self.log_file.read_text(encoding="utf-8")

    def wait_ready(self) -> "Server":
        end = time.monotonic() + START
        while self.http.get("/health").status_code != 200:
            assert time.monotonic() < end, self.log
            time.sleep(POLL)
        return self

    def worker(self) -> psutil.Process:
        """The process that runs the models: the child that uses most memory; others belong to multiprocessing."""
        children = psutil.Process(self.process.pid).children()
        return max(children, key=lambda child: child.memory_info().rss)

    def generate(self, **asked: Any) -> httpx.Response:
        return self.http.post("/v1/images/generations", json=asked)

    def metric(self, name: str, **labels: str) -> float:
        """The value of a metric, summed over labels that are not given."""
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        lines = [line for line in self.http.get("/metrics").text.splitlines() if line.split("{")[0].split()[0] == name]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if all(label in line for label in wanted))

    def running(self) -> int:
        """The number of requests in workers."""
        return int(self.metric("bitdance_running_requests"))

    def stop(self) -> int:
        self.process.terminate()
        try:
            return self.process.wait(30)
        finally:
            self.http.close()
            self.process.kill()
            self.process.wait()
            assert self.process.stdout is not None
            self.process.stdout.close()
