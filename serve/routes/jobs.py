"""/v1/jobs: images that are requested now, and watched or fetched later."""

import asyncio
from typing import Any

from fastapi import APIRouter, Response

from bitdance_edge.serve.connection import EventStream
from bitdance_edge.serve.jobs import RunningJob
from bitdance_edge.serve.json_route import JsonRoute
from bitdance_edge.serve.routes.common import TheService, errors, event_stream
from bitdance_edge.serve.runtime_request import change, generation
from bitdance_edge.serve.schema import Job, JobRequest

router = APIRouter(prefix="/v1/jobs", route_class=JsonRoute)
OF_A_JOB = ("get_job", "watch_job", "cancel_job")
STREAMED = event_stream(
    "Server-sent events: `job.progress` and `job.preview`, then `job.completed`, `job.failed` or `job.cancelled` with "
    "the job."
)
LINKS = {name: {"operationId": name, "parameters": {"job_id": "$response.body#/id"}} for name in OF_A_JOB}


@router.post("", status_code=202, responses={202: {"links": LINKS}, **errors(400, 401, 404, 413, 429, 503, 507)})
async def create_job(fields: JobRequest, response: Response, service: TheService) -> Job:
    """Request images without waiting for them."""
    fleet = service.fleet
    model = fleet.catalog.get(fields.model)
    with fleet.scheduler.admitted(model) as submit:
        changed = None
        if fields.edit is not None:
            async with service.picture:
                changed = await asyncio.to_thread(change, fields, model)
        work = await asyncio.to_thread(generation, fields, model, service.settings, changed)
        job = RunningJob(submit(work), work, fields, model.bundle.model.size(work.size).patches)
    await service.jobs.add(job)
    response.headers["Location"] = f"/v1/jobs/{job.state.id}"
    return job.state


@router.get("/{job_id}", responses=errors(401, 404))
async def get_job(job_id: str, service: TheService) -> Job:
    """Return the progress of a job, and its finished images."""
    return await service.jobs.get(job_id)


@router.post("/{job_id}/cancel", responses=errors(401, 404))
async def cancel_job(job_id: str, service: TheService) -> Job:
    """Stop a job at its next patch; a job that has ended is returned unchanged."""
    return await service.jobs.cancel(job_id)


@router.get("/{job_id}/events", response_class=Response, responses={200: STREAMED, **errors(401, 404)})
async def watch_job(job_id: str, service: TheService) -> Any:
    """Watch a job; disconnecting does not cancel it."""
    return EventStream(await service.jobs.watch(job_id), service.settings.keep_alive)
