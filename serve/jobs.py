"""Jobs: images that are requested now and fetched later, or watched patch by patch.

A job keeps only the latest preview of each image, so a job that nobody watches does not grow. Finished jobs are dropped
by age, number and size, oldest first.

Routes see jobs through ``JobStore``. ``Jobs`` is the one of a single server; a store of several servers runs its own
jobs in a ``Jobs`` and finds those of the others by their ``Snapshot``.
"""

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from bitdance_edge.serve.connection import NamedEvent
from bitdance_edge.serve.errors import ApiError
from bitdance_edge.serve.pictures import encoded
from bitdance_edge.serve.schema import ErrorDetail, ImageData, Job, JobRequest, StageTiming, Timing
from bitdance_edge.serve.ticket import Completed, ImageReady, PatchReady, Started, Ticket
from bitdance_edge.serve.work import Generation

KEPT_SECONDS = 600.0
KEPT_JOBS = 200
KEPT_BYTES = 64 * 2**20  # of base64, over all finished jobs


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A job at one moment, as plain data. ``version`` grows with each change."""

    version: int
    state: Job
    previews: dict[int, str]  # image -> base64, until the image is finished
    patch_of: list[int]
    ended: bool


NextSnapshot = Callable[[int], Awaitable[Snapshot]]  # the first with another version than the given one


class JobStore(Protocol):
    """Where the routes find jobs; ``get``, ``cancel`` and ``watch`` raise ApiError 404 for a job that is not there."""

    async def add(self, job: "RunningJob") -> None:
        """Keep a job; from then on it is found."""
        ...

    async def get(self, job_id: str) -> Job: ...

    async def cancel(self, job_id: str) -> Job:
        """Stop a job at its next patch, and return it once it has ended."""
        ...

    async def watch(self, job_id: str) -> AsyncGenerator[NamedEvent, None]: ...

    async def drained(self) -> None:
        """Wait until every job has ended, and all that must be known of it is kept."""
        ...


class RunningJob:
    """A job, its latest previews, and the task that reads the events of its ticket."""

    def __init__(self, ticket: Ticket, work: Generation, fields: JobRequest, patches: int) -> None:
        self.ticket, self.fields, self.patches = ticket, fields, patches
        self.batch_images = 0
        self.previews: dict[int, str] = {}  # image -> base64, until the image is finished
        self.patch_of = [0] * work.images
        self.changed = asyncio.Condition()
        self.version = 0
        self.ended: float | None = None
        self.state = Job(
            id=f"job_{secrets.token_urlsafe(16)}",
            status="queued",
            created=int(time.time()),
            model=work.model,
            size=str(work.size),
            output_format=fields.output_format or "png",
            seed=work.seeds[0],
            n=work.images,
            num_inference_steps=work.steps,
            guidance_scale=work.guidance,
            guidance_schedule=work.guidance_schedule,
            sampler=work.sampler,
            patches=patches * work.images,
            patches_done=0,
            data=[None] * work.images,
            timing=None,
            error=None,
        )
        self.task = asyncio.create_task(self._follow())

    @property
    def bytes(self) -> int:
        return job_bytes(self.state)

    async def _follow(self) -> None:
        try:
            async for event in self.ticket.events():
                await self._take(event)
                await self._announce()
        except ApiError as error:
            self.state.error = ErrorDetail(**error.body()["error"])
            self.state.status = "cancelled" if error.code == "cancelled" else "failed"
        self.previews.clear()
        self.ended = time.monotonic()
        await self._announce()

    async def _take(self, event: object) -> None:
        if isinstance(event, Started):
            self.state.status, self.batch_images = "running", event.batch_images
        elif isinstance(event, PatchReady):
            for image in event.images:
                self.patch_of[image] = event.patch
            self.state.patches = event.patches * self.state.n  # with those of all candidates
            self.state.patches_done = sum(self.patch_of)
            for image, pixels in event.previews.items():
                self.previews[image] = await encoded(pixels)
        elif isinstance(event, ImageReady) and event.image.pixels is not None:
            file = await encoded(
                event.image.pixels, self.state.output_format, self.fields.output_compression, event.image.settings
            )
            self.state.data[event.index] = ImageData(b64_json=file, seed=event.image.seed)
            self.previews.pop(event.index, None)
        elif isinstance(event, Completed):
            self.state.status, self.state.timing = "completed", timing(event, self.batch_images)

    async def _announce(self) -> None:
        async with self.changed:
            self.version += 1
            self.changed.notify_all()

    async def snapshot(self, version: int) -> Snapshot:
        """Wait for another version than this, and return it."""
        async with self.changed:
            while self.version == version:
                await self.changed.wait()
        return Snapshot(
            version=self.version,
            state=self.state,
            previews=dict(self.previews),
            patch_of=list(self.patch_of),
            ended=self.ended is not None,
        )


def job_bytes(state: Job) -> int:
    """Return the size of a job's images, in characters of base64."""
    return sum(len(data.b64_json) for data in state.data if data)


async def watched(following: NextSnapshot) -> AsyncGenerator[NamedEvent, None]:
    """Yield (event, data): ``job.preview`` and ``job.progress``, at last ``job.<status>`` with the job.

    A slow watcher misses previews, never the last event.
    """
    shown: dict[int, str] = {}
    version = -1
    while True:
        now = await following(version)
        version, state = now.version, now.state
        for image, file in now.previews.items():
            if shown.get(image) != file:
                shown[image] = file
                yield "job.preview", {"index": image, "patch": now.patch_of[image], "b64_json": file}
        if now.ended:
            yield f"job.{state.status}", state.model_dump()
            return
        progress = {"status": state.status, "patches_done": state.patches_done, "patches": state.patches}
        yield "job.progress", progress


def timing(completed: Completed, batch_images: int) -> Timing:
    """The times of a batch in milliseconds, as the API reports them."""
    return Timing(
        waited_milliseconds=1000 * completed.waited,
        milliseconds=1000 * completed.seconds,
        batch_images=batch_images,
        stages={
            name: StageTiming(launches=spent.launches, milliseconds=1000 * spent.seconds)
            for name, spent in completed.stages.items()
        },
    )


def no_such_job(job_id: str) -> ApiError:
    message = f"no job {job_id[:100]!r}; finished jobs are kept for {KEPT_SECONDS:g} s at most"
    return ApiError(404, "job_not_found", message, param="job_id")


class Jobs:
    """The jobs of one server, in its memory. Their ids cannot be guessed."""

    def __init__(self) -> None:
        self._jobs: dict[str, RunningJob] = {}

    async def add(self, job: RunningJob) -> None:
        """Keep a job, and drop finished ones over the limits."""
        self._jobs[job.state.id] = job
        self._drop_finished()

    def find(self, job_id: str) -> RunningJob | None:
        """Return a job of this server."""
        self._drop_finished()
        return self._jobs.get(job_id)

    async def get(self, job_id: str) -> Job:
        return self._found(job_id).state

    async def cancel(self, job_id: str) -> Job:
        job = self._found(job_id)
        job.ticket.cancel()
        await job.task
        return job.state

    async def watch(self, job_id: str) -> AsyncGenerator[NamedEvent, None]:
        return watched(self._found(job_id).snapshot)

    async def drained(self) -> None:
        await asyncio.gather(*(job.task for job in self._jobs.values()))

    def _found(self, job_id: str) -> RunningJob:
        if (job := self.find(job_id)) is None:
            raise no_such_job(job_id)
        return job

    def _drop_finished(self) -> None:
        ended = {key: (job.ended, job.bytes) for key, job in self._jobs.items() if job.ended is not None}
        for job_id in to_drop(ended):
            del self._jobs[job_id]


def to_drop(ended: dict[str, tuple[float, int]]) -> list[str]:
    """Return which finished jobs are over the limits, of (time of its end, bytes) by id."""
    count, size, oldest = len(ended), sum(size for _, size in ended.values()), time.monotonic() - KEPT_SECONDS
    dropped = []
    for job_id, (end, its_size) in sorted(ended.items(), key=lambda item: item[1][0]):
        if count <= KEPT_JOBS and size <= KEPT_BYTES and end > oldest:
            break
        dropped.append(job_id)
        count, size = count - 1, size - its_size
    return dropped
