"""Jobs: images that are requested now and fetched later, or watched patch by patch.

A job keeps only the latest preview of each image, so a job that nobody watches does not grow. Finished jobs are dropped
by age, number and size, oldest first.
"""

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator

from bitdance_edge.serve.connection import NamedEvent
from bitdance_edge.serve.errors import ApiError
from bitdance_edge.serve.pictures import encoded
from bitdance_edge.serve.schema import ErrorDetail, ImageData, Job, JobRequest, StageTiming, Timing
from bitdance_edge.serve.ticket import Completed, ImageReady, PatchReady, Started, Ticket
from bitdance_edge.serve.work import Generation

KEPT_SECONDS = 600.0
KEPT_JOBS = 200
KEPT_BYTES = 64 * 2**20  # of base64, over all finished jobs


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
        """Size of the images, in characters of base64."""
        return sum(len(data.b64_json) for data in self.state.data if data)

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

    async def watch(self) -> AsyncGenerator[NamedEvent, None]:
        """Yield (event, data): ``job.preview`` and ``job.progress``, at last ``job.<status>`` with the job.

        A slow watcher misses previews, never the last event.
        """
        shown: dict[int, str] = {}
        version = -1
        while True:
            async with self.changed:
                while self.version == version:
                    await self.changed.wait()
            version = self.version
            for image, file in list(self.previews.items()):
                if shown.get(image) != file:
                    shown[image] = file
                    yield "job.preview", {"index": image, "patch": self.patch_of[image], "b64_json": file}
            if self.ended is not None:
                yield f"job.{self.state.status}", self.state.model_dump()
                return
            yield (
                "job.progress",
                {
                    "status": self.state.status,
                    "patches_done": self.state.patches_done,
                    "patches": self.state.patches,
                },
            )


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


class Jobs:
    """All jobs of a server. Their ids cannot be guessed."""

    def __init__(self) -> None:
        self._jobs: dict[str, RunningJob] = {}

    def add(self, job: RunningJob) -> None:
        """Keep a job, and drop finished ones over the limits."""
        self._jobs[job.state.id] = job
        self._drop_finished()

    def get(self, job_id: str) -> RunningJob:
        """Look up a job. Raises: ApiError 404."""
        self._drop_finished()
        if job_id not in self._jobs:
            message = f"no job {job_id!r}; finished jobs are kept for {KEPT_SECONDS:g} s at most"
            raise ApiError(404, "job_not_found", message, param="job_id")
        return self._jobs[job_id]

    def _drop_finished(self) -> None:
        ended = [job for job in self._jobs.values() if job.ended is not None]
        count, size, oldest = len(ended), sum(job.bytes for job in ended), time.monotonic() - KEPT_SECONDS
        for job in sorted(ended, key=lambda job: job.ended or 0.0):
            if count <= KEPT_JOBS and size <= KEPT_BYTES and (job.ended or 0.0) > oldest:
                break
            del self._jobs[job.state.id]
            count, size = count - 1, size - job.bytes
