"""Jobs of two replicas over one board, without Ray: found, watched and cancelled from either, lost with theirs."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest

from bitdance_edge.scale import job_board
from bitdance_edge.scale.fleet_metrics import joined
from bitdance_edge.scale.job_board import JobBoard
from bitdance_edge.scale.shared_jobs import SharedJobs
from bitdance_edge.serve.errors import ApiError
from bitdance_edge.serve.jobs import RunningJob, Snapshot, watched
from bitdance_edge.serve.metrics import Metrics
from bitdance_edge.serve.schema import Job


class FakeJob:
    """A job whose events the test makes; what ``SharedJobs`` uses of a ``RunningJob``."""

    snapshot = RunningJob.snapshot
    _announce = RunningJob._announce

    def __init__(self, name: str) -> None:
        self.changed, self.version, self.ended = asyncio.Condition(), 0, None
        self.previews: dict[int, str] = {}
        self.patch_of = [0]
        self.bytes = 0
        fields = {"id": name, "status": "queued", "created": 0, "model": "m", "size": "8x8", "output_format": "png"}
        sampling = {"num_inference_steps": 1, "guidance_scale": 1.0, "guidance_schedule": "constant", "sampler": "sde"}
        counts = {"seed": 0, "n": 1, "patches": 4, "patches_done": 0, "data": [None], "timing": None, "error": None}
        self.state = Job.model_validate({**fields, **sampling, **counts})
        self.stopped = asyncio.Event()
        self.ticket = SimpleNamespace(cancel=self.stopped.set)
        self.task = asyncio.create_task(self._until_stopped())

    async def _until_stopped(self) -> None:
        await self.stopped.wait()
        await self.end("cancelled")

    async def show(self, patch: int) -> None:
        self.previews, self.patch_of, self.state.patches_done = {0: f"preview {patch}"}, [patch], patch
        await self._announce()

    async def end(self, status: Any) -> None:
        self.state.status, self.previews, self.ended = status, {}, time.monotonic()  # type: ignore[assignment]
        await self._announce()


def replicas(board: JobBoard) -> tuple[SharedJobs, SharedJobs]:
    async def call(method: str, *arguments: Any) -> Any:
        return await getattr(board, method)(*arguments)

    return SharedJobs(call), SharedJobs(call)


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(test(), 60)

    asyncio.run(bounded())


def test_a_job_is_read_watched_and_cancelled_on_the_other_replica() -> None:
    async def test() -> None:
        first, second = replicas(JobBoard())
        job: Any = FakeJob("job_1")
        await first.add(job)
        assert (await second.get("job_1")).status == "queued"
        events = await second.watch("job_1")
        assert (await anext(events))[0] == "job.progress"
        await job.show(2)
        assert await anext(events) == ("job.preview", {"index": 0, "patch": 2, "b64_json": "preview 2"})
        assert (await anext(events))[1]["patches_done"] == 2
        assert (await second.cancel("job_1")).status == "cancelled"
        assert [event async for event in events][-1][0] == "job.cancelled"
        assert (await first.get("job_1")).status == "cancelled"
        await first.drained()

    run(test)


def test_a_job_of_nobody_is_404_on_both() -> None:
    async def test() -> None:
        for jobs in replicas(JobBoard()):
            for ask in (jobs.get, jobs.cancel, jobs.watch):
                with pytest.raises(ApiError, match="no job 'job_x'"):
                    await ask("job_x")

    run(test)


def test_a_job_whose_replica_is_gone_fails_and_its_watcher_learns_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_board, "LOST_AFTER", 0.2)
    monkeypatch.setattr(job_board, "LOOK", 0.05)

    async def test() -> None:
        board = JobBoard()
        _, other = replicas(board)
        job: Any = FakeJob("job_1")
        await board.post("job_1", await job.snapshot(-1))  # posted by a replica that asks nothing after that
        names = [name async for name, _ in await other.watch("job_1")]
        assert names == ["job.progress", "job.failed"]
        lost = (await other.get("job_1")).error
        assert lost is not None and lost.code == "replica_lost"
        job.task.cancel()

    run(test)


def test_a_replica_that_asks_keeps_a_slow_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_board, "LOST_AFTER", 0.4)
    monkeypatch.setattr(job_board, "LOOK", 0.05)

    async def test() -> None:
        first, second = replicas(JobBoard())
        job: Any = FakeJob("job_1")
        await first.add(job)
        await asyncio.sleep(1.0)
        assert (await second.get("job_1")).status == "queued"
        await second.cancel("job_1")

    run(test)


def test_a_watcher_that_is_slow_misses_previews_and_not_the_end() -> None:
    async def test() -> None:
        job: Any = FakeJob("job_1")

        async def following(version: int) -> Snapshot:
            return await job.snapshot(version)

        events = watched(following)
        await anext(events)
        for patch in (1, 2, 3):
            await job.show(patch)
        await job.end("completed")
        assert [name async for name, _ in events] == ["job.completed"]
        job.task.cancel()

    run(test)


def test_metrics_of_replicas_are_one_text_with_a_label() -> None:
    texts = {}
    for name in ("a", "b"):
        metrics = Metrics()
        metrics.images.labels("digits").inc(3 if name == "a" else 4)
        metrics.batch_seconds.observe(0.2)
        texts[name] = metrics.text()
    lines = joined(texts).decode().splitlines()
    assert 'bitdance_images_total{model="digits",replica="a"} 3.0' in lines
    assert 'bitdance_images_total{model="digits",replica="b"} 4.0' in lines
    assert 'bitdance_batch_seconds_bucket{le="0.25",replica="b"} 1.0' in lines
    assert len([line for line in lines if line.startswith("# TYPE bitdance_images_total")]) == 1
