"""POST /v1/tokens: turns an image into binary tokens and back."""

from contextlib import aclosing
from typing import Any

import numpy as np
from fastapi import APIRouter, Request

from bitdance_edge.runtime.bundle.specs import ImageSize
from bitdance_edge.runtime.bundle.stage_names import StageName
from bitdance_edge.runtime.preview import sequence_to_grid
from bitdance_edge.serve.catalog import Model
from bitdance_edge.serve.connection import until_client_leaves
from bitdance_edge.serve.errors import ApiError
from bitdance_edge.serve.json_route import JsonRoute
from bitdance_edge.serve.pictures import decoded, encoded
from bitdance_edge.serve.routes.common import TheService, errors
from bitdance_edge.serve.runtime_request import packed_tokens
from bitdance_edge.serve.schema import TokensRequest, TokensResponse
from bitdance_edge.serve.service import Service
from bitdance_edge.serve.ticket import Ticket, Tokenized
from bitdance_edge.serve.work import Tokenization

router = APIRouter(route_class=JsonRoute)


@router.post("/v1/tokens", response_model=TokensResponse, responses=errors(400, 401, 404, 413, 429, 503, 504, 507))
async def tokenize_image(fields: TokensRequest, request: Request, service: TheService) -> Any:
    """Return the tokens of an image, cropped and resized to a size of the model, and the image decoded from them."""
    return await until_client_leaves(request, _tokenized(fields, service))


async def _tokenized(fields: TokensRequest, service: Service) -> TokensResponse:
    fleet = service.fleet
    model = fleet.catalog.get(fields.model)
    if StageName.ENCODER not in model.bundle.stages:
        raise ApiError(
            400,
            "no_encoder",
            f"{model.id} has no encoder, so it cannot tokenise images; export its bundle with one",
            param="model",
        )
    size = model.size(fields.size)
    with fleet.scheduler.admitted(model) as submit:  # first, so that a full queue costs no decoding
        async with service.picture:
            pixels = await decoded(fields.image, size.pixels, fields.fit)
        ticket = submit(Tokenization(model=model.id, pixels=pixels))
    return await _response(ticket, model, size)


async def _response(ticket: Ticket, model: Model, size: ImageSize) -> TokensResponse:
    async with aclosing(ticket.events()) as events:
        tokenized = [event async for event in events if isinstance(event, Tokenized)][-1]
    spec = model.bundle.model
    place = sequence_to_grid(np.arange(size.tokens), size.grid_height, size.grid_width, spec.patch_side).ravel()
    return TokensResponse(
        model=model.id,
        size=str(size),
        grid=[size.grid_height, size.grid_width],
        bits=spec.bits,
        patches=size.patches,
        tokens=packed_tokens(tokenized.tokens),
        grid_tokens=packed_tokens(tokenized.tokens[place]),
        image=await encoded(tokenized.pixels),
    )
