"""/v1/images/edits and /v1/images/variations, as in https://platform.openai.com/docs/api-reference/images/createEdit.

Nothing is edited by instruction: the prompt says what the whole image shows.
"""

import asyncio
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Form, Request

from bitdance_edge.runtime import Size
from bitdance_edge.serve.connection import EventStream, until_client_leaves
from bitdance_edge.serve.edit_form import EditForm, PictureForm, VariationForm
from bitdance_edge.serve.edits import subject_of, uploaded_change
from bitdance_edge.serve.errors import ApiError
from bitdance_edge.serve.form_route import MULTIPART, FormRoute
from bitdance_edge.serve.image_response import ImageResponse
from bitdance_edge.serve.routes.common import TheService, errors, event_stream
from bitdance_edge.serve.runtime_request import generation
from bitdance_edge.serve.schema import ImagesResponse
from bitdance_edge.serve.service import Service
from bitdance_edge.serve.ticket import Ticket
from bitdance_edge.serve.work import Change

router = APIRouter(prefix="/v1/images", route_class=FormRoute)
STREAMED = event_stream(
    "The images; with `stream`, the server-sent events `image_edit.partial_image`, `image_edit.completed` and, after a "
    "failure, `error`."
)
RESPONSES = {200: STREAMED, **errors(400, 401, 404, 413, 429, 503, 504, 507)}
MakeChange = Callable[[Size], Change]


@router.post("/edits", response_model=ImagesResponse, responses=RESPONSES)
async def edit_image(
    form: Annotated[EditForm, Form(media_type=MULTIPART)], request: Request, service: TheService
) -> Any:
    """Redraw an image where a mask says so, or vary all of it; image i uses seed + i * candidates."""
    image = await form.only_file().read()
    mask = await form.mask.read() if form.mask is not None else None

    def change(size: Size) -> Change:
        return uploaded_change(image, mask, size, fit=form.fit, strength=form.strength, candidates=form.candidates)

    return await _answer(form, change, request, service)


@router.post("/variations", response_model=ImagesResponse, responses=RESPONSES)
async def vary_image(
    form: Annotated[VariationForm, Form(media_type=MULTIPART)], request: Request, service: TheService
) -> Any:
    """Vary an image; what it shows is in the PNG if it was made here, else in ``prompt``."""
    image = await form.only_file().read()
    if not form.prompt:
        form.prompt = await asyncio.to_thread(subject_of, image) or ""
    if not form.prompt:
        message = "the image does not say what it shows; add the field prompt, or send a PNG made by this server"
        raise ApiError(400, "missing_parameter", message, param="prompt")

    def change(size: Size) -> Change:
        return uploaded_change(image, None, size, fit=form.fit, strength=form.strength)

    return await _answer(form, change, request, service)


async def _answer(form: PictureForm, change: MakeChange, request: Request, service: Service) -> Any:
    response, ticket = await until_client_leaves(request, _submitted(form, change, service))
    if form.stream:
        return EventStream(response.events(ticket), service.settings.keep_alive)
    return await until_client_leaves(request, response.whole(ticket))


async def _submitted(form: PictureForm, change: MakeChange, service: Service) -> tuple[ImageResponse, Ticket]:
    fleet = service.fleet
    model = fleet.catalog.get(form.model)
    with fleet.scheduler.admitted(model) as submit:
        async with service.picture:
            changed = await asyncio.to_thread(change, model.size(form.size).pixels)
        work = await asyncio.to_thread(generation, form, model, service.settings, changed)
        return ImageResponse(form, work, model), submit(work)
