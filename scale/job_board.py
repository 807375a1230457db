"""Where the replicas of one server meet: their jobs, cancellations of these, and their metrics. Plain asyncio.

A replica posts each change of its jobs, and asks all the time whether one is cancelled; when it no longer asks, it is
lost, and so are its jobs that had not ended.
"""

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass, replace

from bitdance_edge.serve.errors import SERVER, ApiError
from bitdance_edge.serve.jobs import Snapshot, job_bytes, to_drop
from bitdance_edge.serve.schema import ErrorDetail

LOST_AFTER = 15.0  # seconds without a question of the replica that runs a job
LOOK = 0.5  # seconds between two looks for lost replicas
METRICS_KEPT = 30.0  # seconds after which a replica that has ended is no longer reported


@dataclass
class Entry:
    snapshot: Snapshot
    seen: float
    cancelled: bool = False
    ended: float | None = None


class JobBoard:
    """Jobs and metrics of all replicas. Finished jobs are dropped as those of a single server are."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}
        self._changed = asyncio.Condition()
        self._metrics: dict[str, tuple[float, bytes]] = {}

    async def post(self, job_id: str, snapshot: Snapshot) -> None:
        """Keep the newest state of a job."""
        now = time.monotonic()
        entry = self._entries.setdefault(job_id, Entry(snapshot, now))
        entry.snapshot, entry.seen = snapshot, now
        if snapshot.ended:
            entry.ended = now
        self._drop_finished()
        await self._announce()

    async def following(self, job_id: str, version: int, seconds: float) -> Snapshot | None:
        """Wait up to ``seconds`` for another version of a job, and return the newest; None: there is no such job."""
        end = time.monotonic() + seconds
        while (entry := self._entries.get(job_id)) is not None:
            self._lose(entry)
            if entry.snapshot.version != version or time.monotonic() >= end:
                return entry.snapshot
            await self._wait(end)
        return None

    async def cancel(self, job_id: str) -> bool:
        """Ask the replica that runs a job to stop it; False: there is no such job."""
        entry = self._entries.get(job_id)
        if entry is not None:
            entry.cancelled = True
            await self._announce()
        return entry is not None

    async def is_cancelled(self, job_id: str, seconds: float) -> bool:
        """Wait up to ``seconds`` for the job to be cancelled. Its replica asks this again and again until it ends."""
        end = time.monotonic() + seconds
        while (entry := self._entries.get(job_id)) is not None and not entry.cancelled:
            entry.seen = time.monotonic()
            if entry.seen >= end or entry.ended is not None:
                return False
            await self._wait(end)
        return entry is not None

    async def report(self, replica: str, metrics: bytes) -> dict[str, bytes]:
        """Keep a replica's metrics, and return those of all that reported lately."""
        now = time.monotonic()
        self._metrics[replica] = (now, metrics)
        self._metrics = {name: kept for name, kept in self._metrics.items() if now - kept[0] < METRICS_KEPT}
        return {name: text for name, (_, text) in self._metrics.items()}

    def _lose(self, entry: Entry) -> None:
        """End a job whose replica has not asked for long."""
        if entry.ended is not None or time.monotonic() - entry.seen < LOST_AFTER:
            return
        lost = ApiError(503, "replica_lost", "the replica that ran this job ended; send the request again", kind=SERVER)
        error = ErrorDetail(**lost.body()["error"])
        state = entry.snapshot.state.model_copy(update={"status": "failed", "error": error})
        entry.snapshot = replace(
            entry.snapshot, version=entry.snapshot.version + 1, state=state, previews={}, ended=True
        )
        entry.ended = time.monotonic()

    async def _announce(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _wait(self, end: float) -> None:
        """Wait for a change, for the end, or for the next look for lost replicas."""
        seconds = max(0.0, min(LOOK, end - time.monotonic()))
        async with self._changed:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), seconds)

    def _drop_finished(self) -> None:
        ended = {
            job_id: (entry.ended, job_bytes(entry.snapshot.state))
            for job_id, entry in self._entries.items()
            if entry.ended is not None
        }
        for job_id in to_drop(ended):
            del self._entries[job_id]
