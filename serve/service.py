"""A server without its HTTP: models, queue, workers, jobs and metrics, started and stopped together."""

import asyncio
import logging
from collections.abc import Callable

from bitdance_edge.serve.catalog import Catalog
from bitdance_edge.serve.errors import ServeError, unavailable
from bitdance_edge.serve.jobs import Jobs
from bitdance_edge.serve.metrics import Metrics
from bitdance_edge.serve.scheduler import Scheduler
from bitdance_edge.serve.schema import Health
from bitdance_edge.serve.settings import ServeSettings
from bitdance_edge.serve.worker_pool import WorkerPool

log = logging.getLogger(__name__)


class Service:
    """What the routes work with."""

    def __init__(self, settings: ServeSettings) -> None:
        self.settings = settings
        self.catalog = Catalog(settings)
        self.metrics = Metrics()
        self.scheduler = Scheduler(self.catalog, settings, self.metrics)
        self.pool = WorkerPool(self.catalog, settings, self.scheduler, self.metrics)
        self.jobs = Jobs()
        self.failure: ServeError | None = None  # why the workers did not start
        self.on_failure: Callable[[], None] = lambda: None
        self._stopping: asyncio.Task[None] | None = None
        self.metrics.capacity.set(settings.queue)
        self.metrics.watch_memory(lambda: ((f"worker-{w.device}", w.pid) for w in self.pool.workers))

    async def start(self) -> None:
        """Start the workers; if one cannot start, ``failure`` says why."""
        try:
            await self.pool.start()
        except ServeError as error:
            self.failure = error
            self.on_failure()
            return
        backends = {worker.backend for worker in self.pool.workers}
        log.info("ready: %s on %s", ", ".join(self.catalog.models), ", ".join(sorted(backends)))

    def begin_stop(self) -> None:
        """Reject new requests; those not done after the grace period end with an error."""
        if self._stopping is None:
            self.scheduler.rejection = unavailable("server_stopping", "the server is stopping")
            self._stopping = asyncio.get_running_loop().create_task(self._give_up_after_grace())

    async def stop(self) -> None:
        """Cancel the requests that are not done, and end the workers."""
        self.begin_stop()
        self.scheduler.give_up(unavailable("server_stopping", "the server was stopped"))
        if self._stopping is not None:
            self._stopping.cancel()
        await self.pool.stop()

    def health(self) -> Health:
        """The state of the server and its workers."""
        ready, workers = len(self.pool.ready), len(self.pool.workers)
        if self._stopping is not None:
            status = "stopping"
        elif self.scheduler.rejection is not None:
            status = "starting"
        else:
            status = "ready" if ready == workers else "restarting"
        return Health(status=status, workers=workers, workers_ready=ready)

    async def _give_up_after_grace(self) -> None:
        try:
            await asyncio.wait_for(self.scheduler.idle(), self.settings.grace)
        except TimeoutError:
            self.scheduler.give_up(unavailable("server_stopping", "the server stopped before this was done"))
