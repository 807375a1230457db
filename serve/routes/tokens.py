"""POST /v1/tokens: an image to binary tokens, and back."""

from contextlib import aclosing
from typing import Any

import numpy as np
from fastapi import APIRouter, Request

from bitdance_edge.runtime.bundle.specs import ImageSize
from bitdance_edge.runtime.preview import sequence_to_grid
from bitdance_edge.serve.catalog import Model
from bitdance_edge.serve.connection import until_client_leaves
from bitdance_edge.serve.errors import ApiError
from bitdance_edge.serve.pictures import decoded, encoded
from bitdance_edge.serve.routes.common import TheService, errors
from bitdance_edge.serve.runtime_request import packed_tokens
from bitdance_edge.serve.schema import TokensRequest, TokensResponse
from bitdance_edge.serve.ticket import Ticket, Tokenized
from bitdance_edge.serve.work import Tokenization

router = APIRouter()


@router.post("/v1/tokens", response_model=TokensResponse, responses=errors(400, 401, 404, 413, 429, 503, 504, 507))
async def tokenize_image(asked: TokensRequest, request: Request, service: TheService) -> Any:
    """The tokens of an image, cropped to the model's size, and what its decoder makes of them."""
    model = service.catalog.get(asked.model)
    if "encoder" not in model.bundle.stages:
        raise ApiError(400, "no_encoder", f"{model.id} was exported without its encoder", param="model")
    size = model.size(asked.size)
    pixels = await decoded(asked.image, size.height, size.width)
    ticket = service.scheduler.submit(Tokenization(model=model.id, pixels=pixels))
    return await until_client_leaves(request, _answer(ticket, model, size))


async def _answer(ticket: Ticket, model: Model, size: ImageSize) -> TokensResponse:
    async with aclosing(ticket.events()) as events:
        tokenized = [event async for event in events if isinstance(event, Tokenized)][-1]
    spec = model.bundle.model
    place = sequence_to_grid(np.arange(size.tokens), size.grid_height, size.grid_width, spec.patch_side).ravel()
    return TokensResponse(
        model=model.id,
        size=str(size),
        grid=(size.grid_height, size.grid_width),
        bits=spec.bits,
        patches=size.patches,
        tokens=packed_tokens(tokenized.tokens),
        grid_tokens=packed_tokens(tokenized.tokens[place]),
        image=await encoded(tokenized.pixels),
    )
