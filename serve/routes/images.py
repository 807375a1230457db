"""POST /v1/images/generations, compatible with https://platform.openai.com/docs/api-reference/images/create."""

import asyncio
from typing import Any

from fastapi import APIRouter, Request

from bitdance_edge.serve.connection import EventStream, until_client_leaves
from bitdance_edge.serve.image_response import ImageResponse
from bitdance_edge.serve.json_route import JsonRoute
from bitdance_edge.serve.routes.common import TheService, errors, event_stream
from bitdance_edge.serve.runtime_request import generation
from bitdance_edge.serve.schema import ImageRequest, ImagesResponse

router = APIRouter(route_class=JsonRoute)
STREAMED = event_stream(
    "The images; with `stream`, the server-sent events `image_generation.partial_image`, `image_generation.completed` "
    "and, after a failure, `error`."
)


@router.post(
    "/v1/images/generations",
    response_model=ImagesResponse,
    responses={200: STREAMED, **errors(400, 401, 404, 413, 429, 503, 504, 507)},
)
async def generate_images(fields: ImageRequest, request: Request, service: TheService) -> Any:
    """Generate images of a prompt; image i uses seed + i."""
    fleet = service.fleet
    model = fleet.catalog.get(fields.model)
    with fleet.scheduler.admitted(model) as submit:
        work = await asyncio.to_thread(generation, fields, model, service.settings)
        response, ticket = ImageResponse(fields, work, model), submit(work)
    if fields.stream:
        return EventStream(response.events(ticket), service.settings.keep_alive)
    return await until_client_leaves(request, response.whole(ticket))
