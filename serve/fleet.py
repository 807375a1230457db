"""One set of models with the queue and the workers that serve them; a reload starts another beside it."""

from bitdance_edge.serve.catalog import Catalog
from bitdance_edge.serve.errors import ApiError
from bitdance_edge.serve.metrics import Metrics
from bitdance_edge.serve.scheduler import Scheduler
from bitdance_edge.serve.settings import ServeSettings
from bitdance_edge.serve.worker_pool import WorkerPool


class Fleet:
    """Models as they were when it was made. A request stays with the fleet that admitted it."""

    def __init__(self, settings: ServeSettings, metrics: Metrics) -> None:
        self.catalog = Catalog(settings)
        self.scheduler = Scheduler(self.catalog, settings, metrics)
        self.pool = WorkerPool(self.catalog, settings, self.scheduler, metrics)

    async def retire(self) -> None:
        """Finish every request that it has admitted, then end its workers."""
        await self.scheduler.idle()
        await self.pool.stop()

    async def stop(self, reason: ApiError) -> None:
        """Cancel the requests that are not done, and end the workers."""
        self.scheduler.give_up(reason)
        await self.pool.stop()
