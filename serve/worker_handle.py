"""The server's handle on a worker process: starts it, sends orders, receives reports, notices its death."""

import asyncio
import multiprocessing
import threading
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from bitdance_edge.serve.catalog import Catalog
from bitdance_edge.serve.errors import ServeError
from bitdance_edge.serve.work import NotReady, Order, Ready, Report, Stop
from bitdance_edge.serve.worker_process import run_worker


class WorkerDied(ServeError):
    """A worker process that crashed or was killed."""


class WorkerHandle:
    """One worker process on one device. It can be started again after its death."""

    def __init__(self, device: str, catalog: Catalog, threads: int | None) -> None:
        self.device, self.threads = device, threads
        self.bundles = {
            model.id: (model.bundle.folder.resolve(), model.images_at_once)
            for model in catalog.models.values()
            if model.images_at_once
        }
        self.backend = ""
        self._process: BaseProcess | None = None

    @property
    def pid(self) -> int | None:
        """The id of the running process, or None if there is none."""
        return self._process.pid if self._process is not None and self._process.is_alive() else None

    async def start(self) -> None:
        """Start the process and wait for its warm-up images.

        Raises:
            ServeError: a bundle cannot be opened, or no backend can run it.
            WorkerDied: the process ended without giving a reason.
        """
        context = multiprocessing.get_context("spawn")  # a fork would copy this process without its other threads
        self._connection, theirs = context.Pipe()
        process = context.Process(
            target=run_worker, args=(theirs, self.bundles, self.device, self.threads), name=f"worker-{self.device}"
        )
        process.start()
        theirs.close()
        self._process = process
        self._reports: asyncio.Queue[Report | None] = asyncio.Queue()
        self.died = asyncio.Event()
        threading.Thread(
            target=_listen,
            args=(self._connection, asyncio.get_running_loop(), self._reports, self.died),
            name=f"reports-of-{process.pid}",
            daemon=True,
        ).start()
        report = await self.receive()
        if isinstance(report, NotReady):
            raise ServeError(report.message)
        assert isinstance(report, Ready)
        self.backend = report.backend

    def send(self, order: Order) -> None:
        """Send an order. A dead process does not get it; the next ``receive`` raises WorkerDied."""
        with suppress(OSError):
            self._connection.send(order)

    async def receive(self) -> Report:
        """Wait for the next report.

        Raises:
            WorkerDied: the process has ended.
        """
        report = await self._reports.get()
        if report is None:
            raise WorkerDied(f"the worker of {self.device} ended unexpectedly")
        return report

    def kill(self) -> None:
        """End the process at once, whatever it is doing."""
        if self._process is not None:
            self._process.kill()

    async def stop(self, patience: float = 5.0) -> None:
        """Ask the process to end, and kill it if it has not ended after ``patience`` seconds."""
        if self._process is None:
            return
        self.send(Stop())
        await asyncio.to_thread(self._process.join, patience)
        self.kill()
        await asyncio.to_thread(self._process.join)


def _listen(
    connection: Connection,
    loop: asyncio.AbstractEventLoop,
    reports: asyncio.Queue[Report | None],
    died: asyncio.Event,
) -> None:
    """Pass a process's reports into the event loop, then None when it has ended. Runs in its own thread.

    It may end after the next process was started, so it takes the queue and the event of its own.
    """
    with suppress(RuntimeError), connection:  # RuntimeError: the loop is closed, so nobody reads the reports
        while (report := _received(connection)) is not None:
            loop.call_soon_threadsafe(reports.put_nowait, report)
        loop.call_soon_threadsafe(reports.put_nowait, None)
        loop.call_soon_threadsafe(died.set)


def _received(connection: Connection) -> Report | None:
    """The next report, or None once the process at the other end is gone."""
    try:
        return connection.recv()
    except (EOFError, OSError):
        return None
