"""Keeps one worker per device: starts it, gives it batches, passes its reports to the tickets, restarts it."""

import asyncio
import logging

from bitdance_edge.serve.catalog import Catalog
from bitdance_edge.serve.errors import SERVER, ApiError, ServeError, insufficient_memory, unavailable
from bitdance_edge.serve.metrics import Metrics
from bitdance_edge.serve.runtime_request import runtime_request
from bitdance_edge.serve.scheduler import Batch, Scheduler
from bitdance_edge.serve.settings import ServeSettings
from bitdance_edge.serve.ticket import Completed, ImageReady, PatchReady, Started, Tokenized
from bitdance_edge.serve.work import (
    BatchReport,
    Cancel,
    Generate,
    Generation,
    ImageReport,
    PatchReport,
    Report,
    Tokenization,
    Tokenize,
    TokensReport,
)
from bitdance_edge.serve.worker_handle import WorkerDied, WorkerHandle

log = logging.getLogger(__name__)
LONGEST_PAUSE = 30.0  # seconds between two attempts to restart a worker


class WorkerPool:
    """All workers of a server."""

    def __init__(self, catalog: Catalog, settings: ServeSettings, scheduler: Scheduler, metrics: Metrics) -> None:
        self.settings, self.scheduler, self.metrics = settings, scheduler, metrics
        self.workers = [WorkerHandle(device, catalog, settings.threads) for device in settings.devices]
        self.ready: set[WorkerHandle] = set()
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Start every worker, and return when all have made their warm-up images.

        Raises:
            ServeError: a worker cannot start.
        """
        for worker in self.workers:
            try:
                await worker.start()
            except WorkerDied as death:
                raise ServeError(f"{death} during its warm-up; see its messages above") from None
            self.ready.add(worker)
        self.scheduler.rejection = None
        self._tasks = [asyncio.create_task(self._keep(worker)) for worker in self.workers]

    async def stop(self) -> None:
        """End every worker, and the batches that run."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(worker.stop() for worker in self.workers))

    async def _keep(self, worker: WorkerHandle) -> None:
        """Serve batches, and restart the worker whenever it dies."""
        pause = 0.0
        while True:
            try:
                await self._serve(worker)
            except WorkerDied as death:
                log.error("%s; restarting it", death)
            except Exception:
                log.exception("the server failed while it used the worker of %s; restarting the worker", worker.device)
            self.ready.discard(worker)
            self.metrics.restarts.inc()
            await worker.stop(patience=0)
            await asyncio.sleep(pause)
            try:
                await worker.start()
            except ServeError as error:
                pause = min(LONGEST_PAUSE, 2 * pause + 1)
                log.error("%s; trying again in %g s", error, pause)
                continue
            pause = 0.0
            self.ready.add(worker)

    async def _serve(self, worker: WorkerHandle) -> None:
        """Run one batch after another. Raises: WorkerDied."""
        while True:
            died = asyncio.create_task(worker.died.wait())
            batch = asyncio.create_task(self.scheduler.next_batch())
            try:
                await asyncio.wait({died, batch}, return_when=asyncio.FIRST_COMPLETED)
                if died.done():
                    if batch.done():
                        self.scheduler.put_back(batch.result())
                    raise WorkerDied(f"the worker of {worker.device} ended while it was idle")
                await self._run(worker, batch.result())
            finally:
                died.cancel()
                batch.cancel()

    async def _run(self, worker: WorkerHandle, batch: Batch) -> None:
        """Run one batch. Each of its tickets gets its last event here, whatever happens."""
        started = asyncio.get_running_loop().time()
        cancelling = asyncio.create_task(self._cancel_when_abandoned(worker, batch))
        try:
            for ticket in batch.tickets:
                ticket.put(Started(batch.images))
                self.metrics.wait_seconds.observe(started - ticket.accepted)
            worker.send(self._order(batch))
            while not isinstance(report := await worker.receive(), BatchReport):
                self._deliver(report, batch)
            self._finish(report, batch, started)
        finally:
            cancelling.cancel()
            gone = unavailable(
                "worker_died", "the worker that ran this request ended unexpectedly; send the request again"
            )
            for ticket in batch.tickets:
                ticket.put(gone)
            self.scheduler.finished(batch, asyncio.get_running_loop().time() - started)

    def _order(self, batch: Batch) -> Generate | Tokenize:
        first = batch.tickets[0].work
        if isinstance(first, Tokenization):
            return Tokenize(batch=batch.number, model=first.model, pixels=first.pixels)
        works = [ticket.work for ticket in batch.tickets if isinstance(ticket.work, Generation)]
        return Generate(
            batch=batch.number,
            model=first.model,
            request=runtime_request(works, self.scheduler.catalog.get(first.model).bundle),
            previews=tuple(work.previews for work in works for _ in work.seeds),
            fast=tuple(work.fast_previews for work in works for _ in work.seeds),
        )

    async def _cancel_when_abandoned(self, worker: WorkerHandle, batch: Batch) -> None:
        await batch.cancel.wait()
        worker.send(Cancel(batch.number))
        await asyncio.sleep(self.settings.stuck_after)
        log.error("the worker of %s has not obeyed a cancellation; killing it", worker.device)
        worker.kill()

    def _deliver(self, report: Report, batch: Batch) -> None:
        """Pass a report to the tickets whose images it is about, with image numbers of their requests."""
        for ticket, start in zip(batch.tickets, batch.starts, strict=False):
            stop = start + ticket.work.images
            if isinstance(report, PatchReport):
                images = range(max(start, report.first) - start, min(stop, report.first + report.count) - start)
                if images:
                    self.metrics.patches.labels(ticket.work.model).inc(len(images))
                    shown = {i - start: pixels for i, pixels in report.previews.items() if start <= i < stop}
                    ticket.put(PatchReady(images=images, patch=report.patch, patches=report.patches, previews=shown))
            elif isinstance(report, ImageReport) and start <= report.index < stop:
                self.metrics.images.labels(ticket.work.model).inc()
                ticket.put(ImageReady(report.index - start, report.image))
            elif isinstance(report, TokensReport):
                ticket.put(Tokenized(report.tokens, report.pixels))

    def _finish(self, done: BatchReport, batch: Batch, started: float) -> None:
        model = batch.tickets[0].work.model
        self.metrics.batch_done(model, batch.images, done)
        for ticket in batch.tickets:
            if done.failure is None:
                waited = started - ticket.accepted
                ticket.put(Completed(seconds=done.seconds, waited=waited, stages=done.stages))
            else:
                ticket.put(_failure(*done.failure))
        if done.failure and done.failure[0] != "cancelled":
            log.error("a batch of %d images of %s failed: %s", batch.images, model, done.failure[0])


def _failure(code: str, message: str) -> ApiError:
    if code == "insufficient_memory":
        return insufficient_memory(f"the device is out of memory ({message}); ask for fewer images")
    if code == "invalid_request":
        return ApiError(400, code, message)
    return ApiError(500, code, f"the images could not be made: {message}", kind=SERVER)
