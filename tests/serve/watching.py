"""Watches a server from beside an attack on it: the latency of its event loop and the memory of its process."""

import http.client
import threading
import time
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

import psutil
from serving import Server

EVERY = 0.1  # seconds between two requests for /health
PATIENCE = 0.25  # seconds in which each must be answered


class Watch:
    """Use as a context: asks for /health every 100 ms, and reads the resident memory as often.

    Attributes:
        latencies: seconds of each request for /health.
        grown: bytes by which the resident memory exceeded that at the start, at most.
    """

    def __init__(self, server: Server) -> None:
        self.address, self.process = urlsplit(server.url), psutil.Process(server.process.pid)
        self.latencies: list[float] = []
        self.start = self.grown = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self.start = self.process.memory_info().rss
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._done.set()
        self._thread.join()
        if error is None:
            assert max(self.latencies) < PATIENCE, sorted(self.latencies)[-5:]

    def _run(self) -> None:
        while not self._done.is_set():
            started = time.perf_counter()
            connection = http.client.HTTPConnection(self.address.hostname or "", self.address.port, timeout=30)
            connection.request("GET", "/health")
            assert connection.getresponse().read()
            connection.close()
            self.latencies.append(time.perf_counter() - started)
            self.grown = max(self.grown, self.process.memory_info().rss - self.start)
            self._done.wait(EVERY)

    def kept(self) -> int:
        """Bytes by which the resident memory exceeds that at the start, now."""
        return self.process.memory_info().rss - self.start
