"""The server's end of a worker process: start it, send orders, hear reports, notice its death."""

import asyncio
import multiprocessing
import threading
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from bitdance_edge.serve.catalog import Catalog
from bitdance_edge.serve.errors import ServeError
from bitdance_edge.serve.work import NotReady, Order, Ready, Report, Stop
from bitdance_edge.serve.worker_process import work


class WorkerDied(Exception):
    """The process ended by itself, or was killed."""


class Worker:
    """One process on one device. After its death it can be started again."""

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
        """Of the running process; None where there is none."""
        return self._process.pid if self._process is not None and self._process.is_alive() else None

    async def start(self) -> None:
        """Start the process and wait for its warm-up images.

        Raises:
            ServeError: a bundle or a backend will not do.
            WorkerDied: it ended without a word.
        """
        context = multiprocessing.get_context("spawn")  # a fork would copy the threads of this process half
        self._connection, theirs = context.Pipe()
        process = context.Process(
            target=work, args=(theirs, self.bundles, self.device, self.threads), name=f"worker-{self.device}"
        )
        process.start()
        theirs.close()
        self._process = process
        self._reports: asyncio.Queue[Report | None] = asyncio.Queue()
        self.died = asyncio.Event()
        loop = asyncio.get_running_loop()
        threading.Thread(target=self._listen, args=(self._connection, loop), daemon=True).start()
        report = await self.receive()
        if isinstance(report, NotReady):
            raise ServeError(report.message)
        assert isinstance(report, Ready)
        self.backend = report.backend

    def send(self, order: Order) -> None:
        with suppress(BrokenPipeError, OSError):  # dead: the next receive says so
            self._connection.send(order)

    async def receive(self) -> Report:
        """The next report. Raises: WorkerDied."""
        report = await self._reports.get()
        if report is None:
            raise WorkerDied(f"the worker of {self.device} ended unexpectedly")
        return report

    def kill(self) -> None:
        """End the process at once, whatever it does."""
        if self._process is not None:
            self._process.kill()

    async def stop(self, patience: float = 5.0) -> None:
        """Have the process end, and kill it where it does not listen."""
        if self._process is None:
            return
        self.send(Stop())
        await asyncio.to_thread(self._process.join, patience)
        self.kill()
        await asyncio.to_thread(self._process.join)

    def _listen(self, connection: Connection, loop: asyncio.AbstractEventLoop) -> None:
        """Pass reports into the event loop, and None at the end (runs in a thread of its own)."""
        with suppress(RuntimeError), connection:  # a RuntimeError: the loop is closed, nobody listens any more
            try:
                while True:
                    loop.call_soon_threadsafe(self._reports.put_nowait, connection.recv())
            except (EOFError, OSError):
                loop.call_soon_threadsafe(self._reports.put_nowait, None)
                loop.call_soon_threadsafe(self.died.set)
