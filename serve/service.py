"""One server without its HTTP: the models, the queue, the workers, the jobs and the metrics, started and stopped."""

import asyncio
import logging
from collections.abc import Callable

from bitdance_edge.serve.catalog import Catalog
from bitdance_edge.serve.crew import Crew
from bitdance_edge.serve.errors import ServeError, unavailable
from bitdance_edge.serve.jobs import Jobs
from bitdance_edge.serve.metrics import Metrics
from bitdance_edge.serve.scheduler import Scheduler
from bitdance_edge.serve.schema import Health
from bitdance_edge.serve.settings import ServeSettings

log = logging.getLogger(__name__)


class Service:
    """Everything that the routes use."""

    def __init__(self, settings: ServeSettings) -> None:
        self.settings = settings
        self.catalog = Catalog(settings)
        self.metrics = Metrics()
        self.scheduler = Scheduler(self.catalog, settings, self.metrics)
        self.crew = Crew(self.catalog, settings, self.scheduler, self.metrics)
        self.jobs = Jobs()
        self.failure: ServeError | None = None  # why the workers did not start
        self.on_failure: Callable[[], None] = lambda: None
        self._stopping: asyncio.Task[None] | None = None
        self.metrics.capacity.set(settings.queue)
        self.metrics.watch_memory(lambda: ((f"worker-{w.device}", w.pid) for w in self.crew.workers))

    async def start(self) -> None:
        """Start the workers; where they cannot be, ``failure`` says why."""
        try:
            await self.crew.start()
        except ServeError as error:
            self.failure = error
            self.on_failure()
            return
        backends = {worker.backend for worker in self.crew.workers}
        log.info("ready: %s on %s", ", ".join(self.catalog.models), ", ".join(sorted(backends)))

    def begin_stop(self) -> None:
        """Take nothing more in; what is still there after the grace ends with an error."""
        if self._stopping is None:
            self.scheduler.refusal = unavailable("server_stopping", "the server is stopping")
            self._stopping = asyncio.get_running_loop().create_task(self._give_up_late())

    async def stop(self) -> None:
        """No client is left: cancel what is not done, and end the workers."""
        self.begin_stop()
        self.scheduler.give_up(unavailable("server_stopping", "the server was stopped"))
        if self._stopping is not None:
            self._stopping.cancel()
        await self.crew.stop()

    def health(self) -> Health:
        ready, workers = len(self.crew.ready), len(self.crew.workers)
        if self._stopping is not None:
            status = "stopping"
        elif self.scheduler.refusal is not None:
            status = "starting"
        else:
            status = "ready" if ready == workers else "restarting"
        return Health(status=status, workers=workers, workers_ready=ready)

    async def _give_up_late(self) -> None:
        try:
            await asyncio.wait_for(self.scheduler.idle(), self.settings.grace)
        except TimeoutError:
            self.scheduler.give_up(unavailable("server_stopping", "the server stopped before this was done"))
