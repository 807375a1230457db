"""The jobs of one of several replicas: it runs its own, and finds those of the others on the board."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from functools import partial
from typing import Any

from bitdance_edge.serve.connection import NamedEvent
from bitdance_edge.serve.jobs import Jobs, RunningJob, Snapshot, no_such_job, watched
from bitdance_edge.serve.schema import Job

QUESTION = 3.0  # seconds that one question to the board waits for an answer
# Calls a method of the board by its name: it is in another process.
CallBoard = Callable[..., Awaitable[Any]]


class SharedJobs:
    """A ``JobStore`` over a ``JobBoard``. Jobs of this replica are answered without it."""

    def __init__(self, board: CallBoard) -> None:
        self.board = board
        self.own = Jobs()
        self._sharing: set[asyncio.Task[None]] = set()

    async def add(self, job: RunningJob) -> None:
        """Keep a job and post it; its changes follow in the background."""
        await self.own.add(job)
        first = await job.snapshot(-1)
        await self.board("post", job.state.id, first)
        for follow in (self._post_changes(job, first.version), self._obey(job)):
            task = asyncio.create_task(follow)
            self._sharing.add(task)
            task.add_done_callback(self._sharing.discard)

    async def get(self, job_id: str) -> Job:
        if self.own.find(job_id) is not None:
            return await self.own.get(job_id)
        return (await self._following(job_id, -1)).state

    async def cancel(self, job_id: str) -> Job:
        if self.own.find(job_id) is not None:
            return await self.own.cancel(job_id)
        if not await self.board("cancel", job_id):
            raise no_such_job(job_id)
        snapshot = await self._following(job_id, -1)
        while not snapshot.ended:
            snapshot = await self._following(job_id, snapshot.version)
        return snapshot.state

    async def watch(self, job_id: str) -> AsyncGenerator[NamedEvent, None]:
        if self.own.find(job_id) is not None:
            return await self.own.watch(job_id)
        await self._following(job_id, -1)  # so that an unknown one is refused before the stream begins
        return watched(partial(self._following, job_id))

    async def drained(self) -> None:
        await self.own.drained()
        await asyncio.gather(*self._sharing)

    async def _following(self, job_id: str, version: int) -> Snapshot:
        while True:
            snapshot: Snapshot | None = await self.board("following", job_id, version, QUESTION)
            if snapshot is None:
                raise no_such_job(job_id)
            if snapshot.version != version:
                return snapshot

    async def _post_changes(self, job: RunningJob, version: int) -> None:
        ended = False
        while not ended:
            snapshot = await job.snapshot(version)
            await self.board("post", job.state.id, snapshot)
            version, ended = snapshot.version, snapshot.ended

    async def _obey(self, job: RunningJob) -> None:
        """Stop the job when it is cancelled through another replica."""
        while job.ended is None:
            if await self.board("is_cancelled", job.state.id, QUESTION):
                job.ticket.cancel()
                return
