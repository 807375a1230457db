"""A server without its HTTP: models, queue, workers, jobs and metrics, started, reloaded and stopped together."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from bitdance_edge.errors import BitDanceError
from bitdance_edge.serve.about_schema import Health
from bitdance_edge.serve.errors import ServeError, unavailable
from bitdance_edge.serve.fleet import Fleet
from bitdance_edge.serve.jobs import Jobs, JobStore
from bitdance_edge.serve.metrics import Metrics
from bitdance_edge.serve.sdapi import SdClients
from bitdance_edge.serve.settings import ServeSettings

log = logging.getLogger(__name__)


class Service:
    """What the routes work with. A route takes ``fleet`` once, so that a reload does not change it meanwhile."""

    def __init__(self, settings: ServeSettings, jobs: JobStore | None = None) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.fleet = Fleet(settings, self.metrics)
        self.retiring: list[Fleet] = []
        self.jobs: JobStore = jobs or Jobs()
        self.scrape: Callable[[], Awaitable[bytes]] = self._own_metrics  # what /metrics answers
        self.sd_clients = SdClients()
        self.picture = asyncio.Semaphore(1)  # pictures are decoded one at a time: a small file can unpack to much
        self.failure: ServeError | None = None  # why the workers did not start
        self.on_failure: Callable[[], None] = lambda: None
        self._stopping: asyncio.Task[None] | None = None
        self._reload_wanted = False
        self._reloading: asyncio.Task[None] | None = None
        self.metrics.capacity.set(settings.queue)
        self.metrics.waiting.set_function(lambda: sum(len(fleet.scheduler.waiting) for fleet in self.fleets))
        self.metrics.running.set_function(lambda: sum(len(fleet.scheduler.running) for fleet in self.fleets))
        self.metrics.watch_memory(
            lambda: ((f"worker-{w.device}", w.pid) for fleet in self.fleets for w in fleet.pool.workers)
        )

    @property
    def fleets(self) -> list[Fleet]:
        """The fleet that takes requests, then those that finish theirs."""
        return [self.fleet, *self.retiring]

    async def start(self) -> None:
        """Start the workers; if one cannot start, ``failure`` says why."""
        try:
            await self.fleet.pool.start()
        except ServeError as error:
            self.failure = error
            self.on_failure()
            return
        self._say("ready")

    def begin_reload(self) -> None:
        """Open the bundles again, beside the running models, and take requests with them once they are ready.

        One asked for during another follows it, so that there are never more than two sets of workers.
        """
        self._reload_wanted = True
        if self._reloading is None or self._reloading.done():
            self._reloading = asyncio.get_running_loop().create_task(self._reload_while_wanted())

    async def _reload_while_wanted(self) -> None:
        while self._reload_wanted and self._stopping is None:
            self._reload_wanted = False
            await self._reload()

    async def _reload(self) -> None:
        log.info("reloading the bundles")
        fresh: Fleet | None = None
        try:
            fresh = await asyncio.to_thread(Fleet, self.settings, self.metrics)
            await fresh.pool.start()
        except BitDanceError as error:
            log.error("the reload failed, and the server goes on with the models it has: %s", error)
        else:
            if self._stopping is None:
                self.retiring.append(self.fleet)
                self.fleet = fresh
        finally:
            if fresh is not None and fresh is not self.fleet:
                await fresh.pool.stop()
        if fresh is self.fleet:
            self._say("reloaded")
            await self.retiring[-1].retire()
            self.retiring.pop()

    def begin_stop(self) -> None:
        """Reject new requests; those not done after the grace period end with an error."""
        if self._stopping is None:
            for fleet in self.fleets:
                fleet.scheduler.rejection = unavailable("server_stopping", "the server is stopping")
            self._stopping = asyncio.get_running_loop().create_task(self._give_up_after_grace())

    async def drain(self) -> None:
        """Reject new requests and wait for those that were accepted, each of which has its time limit."""
        for fleet in self.fleets:
            fleet.scheduler.rejection = unavailable("server_stopping", "the server is stopping")
        await asyncio.gather(*(fleet.scheduler.idle() for fleet in self.fleets))
        await self.jobs.drained()

    async def _own_metrics(self) -> bytes:
        return self.metrics.text()

    async def stop(self) -> None:
        """Cancel the requests that are not done, and end the workers."""
        self.begin_stop()
        tasks = [task for task in (self._stopping, self._reloading) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        reason = unavailable("server_stopping", "the server was stopped")
        await asyncio.gather(*(fleet.stop(reason) for fleet in self.fleets))

    def health(self) -> Health:
        """The state of the server and its workers."""
        pool = self.fleet.pool
        ready, workers = len(pool.ready), len(pool.workers)
        if self._stopping is not None:
            status = "stopping"
        elif self.fleet.scheduler.rejection is not None:
            status = "starting"
        else:
            status = "ready" if ready == workers else "restarting"
        return Health(status=status, workers=workers, workers_ready=ready)

    def _say(self, what: str) -> None:
        backends = sorted({worker.backend for worker in self.fleet.pool.workers})
        log.info("%s: %s on %s", what, ", ".join(self.fleet.catalog.models), ", ".join(backends))

    async def _give_up_after_grace(self) -> None:
        try:
            async with asyncio.timeout(self.settings.grace):
                for fleet in self.fleets:
                    await fleet.scheduler.idle()
        except TimeoutError:
            for fleet in self.fleets:
                fleet.scheduler.give_up(unavailable("server_stopping", "the server stopped before this was done"))
