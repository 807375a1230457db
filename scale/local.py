"""Makes shards with one worker process a device. A worker that dies is started again, and its shard with it."""

import multiprocessing
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from bitdance_edge.scale.errors import ScaleError
from bitdance_edge.scale.events import Added, Event, Said
from bitdance_edge.scale.records import Record
from bitdance_edge.scale.worker_process import Failed, Ready, work

MOST_DEATHS = 3  # of a worker, with no shard made between them
PATIENCE = 5.0  # seconds that a worker has to stop by itself


@dataclass(frozen=True, kw_only=True)
class LocalEngine:
    """One worker a device. ``bundle``: its folder, None for the one that the plan names; ``threads``: of each graph."""

    folder: Path
    bundle: str | None = None
    devices: Sequence[str] = ("auto",)
    threads: int | None = None

    def __call__(self, shards: Sequence[int]) -> Generator[Event, None, None]:
        """Make shards.

        Raises:
            ScaleError: a worker says that it cannot, or dies again and again.
        """
        waiting = deque(shards)
        workers = [_Worker(device) for device in self.devices[: len(shards)]]
        try:
            for worker in workers:
                worker.start(self)
            while waiting or any(worker.shard is not None for worker in workers):
                found = wait([worker.connection for worker in workers])
                for worker in workers:
                    if worker.connection in found:
                        yield from self._received(worker, waiting)
        finally:
            for worker in workers:
                worker.close()
            for worker in workers:
                worker.end()

    def _received(self, worker: "_Worker", waiting: deque[int]) -> Iterator[Event]:
        """Handle one report of a worker, and give it the next shard where it is free."""
        try:
            report = worker.connection.recv()
        except (EOFError, OSError):
            yield from self._died(worker, waiting)
            return
        if isinstance(report, Failed):
            raise ScaleError(report.message)
        if isinstance(report, Ready):
            yield Said(report.line)
        else:
            yield report
        if isinstance(report, Added):
            worker.added += report.images
            return
        if isinstance(report, Record):
            worker.deaths = 0
        worker.give(waiting.popleft() if waiting else None)

    def _died(self, worker: "_Worker", waiting: deque[int]) -> Iterator[Event]:
        """Start a worker again, and put its shard back.

        Raises:
            ScaleError: it has died too often.
        """
        worker.end()
        worker.deaths += 1
        status = worker.process.exitcode if worker.process else None
        what = "before its first shard" if worker.shard is None else f"while it made shard {worker.shard}"
        said = f"the worker of {worker.device} died {what} (exit status {status})"
        if worker.deaths == MOST_DEATHS:
            raise ScaleError(
                f"{said}, for the {MOST_DEATHS}rd time; if memory is short, plan a new job with a smaller "
                "--images-at-once. What is made is kept"
            )
        yield Said(f"{said}; it is started again")
        yield Added(-worker.added)
        if worker.shard is not None:
            waiting.appendleft(worker.shard)
        worker.start(self)


@dataclass
class _Worker:
    """One worker process, the shard that it makes, and the images of that shard that are made."""

    device: str
    shard: int | None = None
    added: int = 0
    deaths: int = 0
    process: BaseProcess | None = field(default=None, repr=False)

    def start(self, engine: LocalEngine) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would copy threads' locks, and CUDA cannot be forked
        self.connection, theirs = context.Pipe()
        self.shard, self.added = None, 0
        arguments = (theirs, engine.folder, engine.bundle, self.device, engine.threads)
        self.process = context.Process(target=work, args=arguments, name=f"bulk-{self.device}")
        self.process.start()
        theirs.close()

    def give(self, shard: int | None) -> None:
        """Have it make a shard. A dead process does not get it; that it is dead is noticed next."""
        self.shard, self.added = shard, 0
        if shard is not None:
            with suppress(OSError):
                self.connection.send(shard)

    def close(self) -> None:
        """Say that there is no more to do, which stops what it does."""
        if self.process is not None:
            self.connection.close()

    def end(self) -> None:
        """Wait until it has ended, and kill it if it does not."""
        if self.process is not None:
            self.connection.close()
            self.process.join(PATIENCE)
            self.process.kill()
            self.process.join()
