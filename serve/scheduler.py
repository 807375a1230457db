"""The bounded queue in front of the workers, and the batches taken from it.

First come, first served. Waiting requests of the same shape as the first join its batch. Each keeps its own seeds, and
so its own noise: an image does not depend on the other requests in its batch.
"""

import asyncio
import itertools
import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bitdance_edge.serve.catalog import Catalog, Model
from bitdance_edge.serve.errors import ApiError, queue_full, unavailable
from bitdance_edge.serve.metrics import Metrics
from bitdance_edge.serve.settings import ServeSettings
from bitdance_edge.serve.ticket import Ticket
from bitdance_edge.serve.work import Generation, Work

log = logging.getLogger(__name__)


class Batch:
    """Tickets that run together; image i of ticket k has number ``starts[k] + i`` in the batch."""

    numbers = itertools.count()

    def __init__(self, tickets: list[Ticket]) -> None:
        self.number, self.tickets = next(self.numbers), tickets
        self.starts = [0, *itertools.accumulate(ticket.work.images for ticket in tickets)]
        self.cancel = asyncio.Event()  # set when no ticket waits for a result any more

    @property
    def images(self) -> int:
        return self.starts[-1]


class Scheduler:
    """Accepts work while the queue has room, and hands it out in batches."""

    def __init__(self, catalog: Catalog, settings: ServeSettings, metrics: Metrics) -> None:
        self.catalog, self.settings, self.metrics = catalog, settings, metrics
        self.rejection: ApiError | None = unavailable(
            "not_ready", "the models are being loaded; /health says when they are"
        )
        self.admitting = 0  # requests that are being checked
        self.waiting: list[Ticket] = []
        self.running: dict[Ticket, Batch] = {}
        self.batch_seconds = 1.0  # a moving average, from which Retry-After is estimated
        self._arrived = asyncio.Event()

    @contextmanager
    def admitted(self, model: Model) -> Iterator[Callable[[Work], Ticket]]:
        """Hold a place in the queue while a request is checked; the function of the context submits its work.

        Raises:
            ApiError: 503 not ready or stopping, 429 queue full, 507 one image does not fit in memory.
        """
        if self.rejection is not None:
            raise self.rejection
        model.require_memory(self.catalog.memory)
        if (filled := len(self.waiting) + self.admitting) >= self.settings.queue:
            self.metrics.refused.inc()
            batches = math.ceil((1 + filled) / max(1, model.images_at_once))
            raise queue_full(filled, max(1, math.ceil(batches * self.batch_seconds)))
        place = [None]  # emptied by the function

        def submit(work: Work) -> Ticket:
            place.pop()
            self.admitting -= 1
            ticket = Ticket(work, self.settings.time_limit, self._given_up, self._closed)
            self.waiting.append(ticket)
            self._arrived.set()
            return ticket

        self.admitting += 1
        try:
            yield submit
        finally:
            self.admitting -= len(place)

    async def next_batch(self) -> Batch:
        """Wait for work, then for a short time for more of the same shape."""
        while True:
            while not self.waiting:
                self._arrived.clear()
                await self._arrived.wait()
            if len(self._joined()) < 2 and self.settings.batch_window:
                await asyncio.sleep(self.settings.batch_window)
            if tickets := self._joined():
                for ticket in tickets:
                    self.waiting.remove(ticket)
                batch = Batch(tickets)
                self.running.update(dict.fromkeys(tickets, batch))
                return batch

    def put_back(self, batch: Batch) -> None:
        """Return a batch that no worker has begun to the head of the queue."""
        for ticket in batch.tickets:
            del self.running[ticket]
        self.waiting[:0] = [ticket for ticket in batch.tickets if not ticket.closed]
        self._arrived.set()

    def finished(self, batch: Batch, seconds: float) -> None:
        """Note that a worker is done with a batch, and how long it took."""
        for ticket in batch.tickets:
            self.running.pop(ticket, None)
        self.batch_seconds = 0.8 * self.batch_seconds + 0.2 * seconds

    async def idle(self) -> None:
        """Wait until no request waits or runs."""
        while self.admitting or self.waiting or self.running:
            await asyncio.sleep(0.02)

    def give_up(self, error: ApiError) -> None:
        """End every request that waits or runs with an error."""
        for ticket in [*self.waiting, *self.running]:
            ticket.give_up(error)

    def _joined(self) -> list[Ticket]:
        """The first ticket and those of the same shape that fit into its batch."""
        if not self.waiting:
            return []
        first, *others = self.waiting
        room = self.catalog.get(first.work.model).images_at_once - first.work.images
        joined = [first]
        for ticket in others:
            if first.work.shape is not None and ticket.work.shape == first.work.shape and ticket.work.images <= room:
                joined.append(ticket)
                room -= ticket.work.images
        return joined

    def _closed(self, ticket: Ticket, outcome: str) -> None:
        work, seconds = ticket.work, asyncio.get_running_loop().time() - ticket.accepted
        self.metrics.requests.labels(outcome).inc()
        prompt = f", prompt {work.prompt!r}" if self.settings.log_prompts and isinstance(work, Generation) else ""
        log.info("%s of %d by %s: %s after %.2f s%s", work.kind, work.images, work.model, outcome, seconds, prompt)

    def _given_up(self, ticket: Ticket) -> None:
        if ticket in self.waiting:
            self.waiting.remove(ticket)
        elif (batch := self.running.get(ticket)) and all(other.closed for other in batch.tickets):
            batch.cancel.set()
