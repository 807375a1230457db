"""/sdapi/v1: the API of AUTOMATIC1111's web UI, as far as its clients need it to make images.

Fields and answers as in github.com/AUTOMATIC1111/stable-diffusion-webui/blob/master/modules/api/models.py and
github.com/leejet/stable-diffusion.cpp/blob/master/examples/server/routes_sdapi.cpp.
"""

import asyncio
from contextlib import aclosing
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request

from bitdance_edge.runtime import GeneratedImage, Size
from bitdance_edge.runtime.sampler import SAMPLERS
from bitdance_edge.serve.catalog import Model
from bitdance_edge.serve.connection import until_client_leaves
from bitdance_edge.serve.errors import ApiError
from bitdance_edge.serve.json_route import JsonRoute
from bitdance_edge.serve.pictures import encoded
from bitdance_edge.serve.routes.common import TheService, errors
from bitdance_edge.serve.runtime_request import generation
from bitdance_edge.serve.schema import GenerationFields
from bitdance_edge.serve.sdapi import SdRequest, information, infotext
from bitdance_edge.serve.sdapi_edits import sd_change
from bitdance_edge.serve.sdapi_schema import (
    GeneratedImages,
    ImageToImage,
    OverrideSettings,
    Progress,
    SdModel,
    SdOptions,
    SdSampler,
    SdScheduler,
    SdUpscaler,
    TextToImage,
)
from bitdance_edge.serve.service import Service
from bitdance_edge.serve.ticket import ImageReady

router = APIRouter(prefix="/sdapi/v1", route_class=JsonRoute)


async def _client(request: Request) -> str:
    return request.client.host if request.client else ""


Client = Annotated[str, Depends(_client)]


@router.post("/txt2img", response_model=GeneratedImages, responses=errors(400, 401, 404, 409, 413, 429, 503, 504, 507))
async def text_to_image(fields: TextToImage, request: Request, service: TheService, client: Client) -> Any:
    """Generate images; image i uses seed + i. The nearest size that the model makes is taken."""
    return await until_client_leaves(request, _images(fields, service, client))


@router.post("/img2img", response_model=GeneratedImages, responses=errors(400, 401, 404, 409, 413, 429, 503, 504, 507))
async def image_to_image(fields: ImageToImage, request: Request, service: TheService, client: Client) -> Any:
    """Vary an image by ``denoising_strength``, all of it or where a mask says so."""
    return await until_client_leaves(request, _images(fields, service, client))


@router.get("/options", responses=errors(401))
async def get_options(service: TheService, client: Client) -> SdOptions:
    """Return the options that this server has: the model that this client's requests use."""
    return SdOptions(sd_model_checkpoint=_model(None, service, client).id)


@router.post("/options", responses=errors(400, 401, 404, 413))
async def set_options(fields: OverrideSettings, service: TheService, client: Client) -> SdOptions:
    """Choose the model that this client's requests use; other options are ignored."""
    if fields.sd_model_checkpoint is not None:
        service.sd_clients.choose(client, service.fleet.catalog.get(fields.sd_model_checkpoint).id)
    return SdOptions(sd_model_checkpoint=_model(None, service, client).id)


@router.get("/sd-models", responses=errors(401))
async def list_sd_models(service: TheService) -> list[SdModel]:
    """List the served models."""
    models = service.fleet.catalog.models.items()
    return [
        SdModel(title=name, model_name=name, hash=digest[:10], sha256=digest, filename=name)
        for name, digest in ((name, model.bundle.digest) for name, model in models)
    ]


@router.get("/samplers", responses=errors(401))
async def list_samplers() -> list[SdSampler]:
    """List the samplers."""
    return [SdSampler(name=name, aliases=[name.upper()]) for name in SAMPLERS]


@router.get("/schedulers", responses=errors(401))
async def list_schedulers() -> list[SdScheduler]:
    """List the one schedule of times, which clients want to choose."""
    return [SdScheduler(name="automatic", label="Automatic")]


@router.get("/upscalers", responses=errors(401))
async def list_upscalers() -> list[SdUpscaler]:
    """List the one upscaler, which does nothing."""
    return [SdUpscaler(name="None")]


@router.get("/latent-upscale-modes", responses=errors(401))
async def list_latent_upscale_modes() -> list[SdUpscaler]:
    """Return an empty list: there are none."""
    return []


@router.get("/sd-vae", responses=errors(401))
async def list_vaes() -> list[SdModel]:
    """Return an empty list: the decoder is part of the model."""
    return []


@router.get("/loras", responses=errors(401))
async def list_loras() -> list[SdModel]:
    """Return an empty list: there are none."""
    return []


@router.get("/progress", responses=errors(401))
async def get_progress(service: TheService, client: Client) -> Progress:
    """Return how far the requests of this client's address are."""
    return service.sd_clients.progress(client)


@router.post("/interrupt", responses=errors(401))
async def interrupt(service: TheService, client: Client) -> dict[str, str]:
    """Stop the requests of this client's address at their next patch; each returns the images that it has finished."""
    service.sd_clients.interrupt(client)
    return {}


def _model(name: str | None, service: Service, client: str) -> Model:
    """The model of a request: named in it, or chosen by this client, or the default one."""
    catalog = service.fleet.catalog
    chosen = name or service.sd_clients.model(client)
    if name is None and chosen not in catalog.models:  # a reload has removed it
        chosen = None
    return catalog.get(chosen)


async def _images(fields: TextToImage, service: Service, client: str) -> GeneratedImages:
    scheduler = service.fleet.scheduler
    own = fields.override_settings
    model = _model(own.sd_model_checkpoint if own is not None else None, service, client)
    with scheduler.admitted(model) as submit:
        asked, change = _generation_fields(fields, model), None
        if isinstance(fields, ImageToImage):
            async with service.picture:
                size, change = await asyncio.to_thread(sd_change, fields, model)
                asked.size = str(size)
        work = await asyncio.to_thread(generation, asked, model, service.settings, change)
        ticket = submit(work)
    request, images = SdRequest(ticket, model.bundle.model.size(work.size).patches), {}
    with service.sd_clients.following(client, request):
        try:
            async with aclosing(ticket.events()) as events:
                async for event in events:
                    request.take(event)
                    if isinstance(event, ImageReady):
                        images[event.index] = event.image
        except ApiError as error:
            if error.code != "cancelled" or not images:
                raise
    made = [(image, infotext(work, image, model)) for _, image in sorted(images.items())]
    return GeneratedImages(
        images=[] if fields.send_images is False else [await _file(image, text) for image, text in made],
        parameters=fields.model_dump(exclude={"init_images", "mask"}),
        info=information(work, model, made),
    )


async def _file(image: GeneratedImage, text: str) -> str:
    assert image.pixels is not None  # the request asks for images, never for tokens alone
    return await encoded(image.pixels, settings=image.settings, parameters=text)


def _generation_fields(fields: TextToImage, model: Model) -> GenerationFields:
    """The same request in the fields of the other routes."""
    sampler = (fields.sampler_name or "").lower()
    return GenerationFields.model_validate(
        {
            "prompt": fields.prompt,
            "negative_prompt": None if model.bundle.text is None else fields.negative_prompt,
            "n": (fields.batch_size or 1) * (fields.n_iter or 1),
            "size": _size(fields, model),
            "seed": None if fields.seed == -1 else fields.seed,
            "num_inference_steps": fields.steps,
            "guidance_scale": None if fields.cfg_scale is None else max(1.0, fields.cfg_scale),
            "sampler": sampler if sampler in SAMPLERS else None,
        }
    )


def _size(fields: TextToImage, model: Model) -> str | None:
    if fields.width is None or fields.height is None:
        return None
    return str(model.nearest(Size(width=fields.width, height=fields.height)))
