"""Routes about the server: models, capabilities, health, metrics."""

from importlib.metadata import version

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST

from bitdance_edge.runtime.bundle.specs import ImageSize, ModelSpec
from bitdance_edge.runtime.bundle.stage_names import StageName
from bitdance_edge.serve.about_schema import (
    Alive,
    Capabilities,
    Health,
    ModelCapabilities,
    ModelCard,
    ModelList,
    PublishedSampling,
    SizeCapabilities,
)
from bitdance_edge.serve.catalog import Model
from bitdance_edge.serve.pictures import FORMATS
from bitdance_edge.serve.routes.common import TheService, errors

router = APIRouter()


@router.get("/health", responses={503: {"model": Health, "description": "Starting, restarting or stopping."}})
async def health(response: Response, service: TheService) -> Health:
    """Return 200 if every worker is ready, 503 otherwise."""
    now = service.health()
    if now.status != "ready":
        response.status_code = 503
    return now


@router.get("/healthz")
async def healthz() -> Alive:
    """Return 200 while the server runs at all, for a supervisor that would restart it."""
    return Alive()


@router.get("/readyz", responses={503: {"model": Health, "description": "Starting, restarting or stopping."}})
async def readyz(response: Response, service: TheService) -> Health:
    """Return 200 if every worker is ready, 503 otherwise, for a load balancer; the same as /health."""
    return await health(response, service)


@router.get("/v1/models", responses=errors(401))
async def list_models(service: TheService) -> ModelList:
    """List the served models, and the aliases under which clients may name them."""
    catalog = service.fleet.catalog
    return ModelList(data=[ModelCard(id=name) for name in (*catalog.models, *catalog.aliases)])


@router.get("/v1/models/{model_id}", responses=errors(401, 404))
async def get_model(model_id: str, service: TheService) -> ModelCard:
    """Describe one model."""
    service.fleet.catalog.get(model_id)  # raises 404 where there is none
    return ModelCard(id=model_id)


@router.get("/v1/capabilities", responses=errors(401))
async def capabilities(service: TheService) -> Capabilities:
    """List the sizes, classes and defaults of each model, and the limits of the server."""
    settings = service.settings
    return Capabilities(
        version=version("bitdance-edge"),
        devices=[worker.backend or worker.device for worker in service.fleet.pool.workers],
        models=[_capabilities(model) for model in service.fleet.catalog.models.values()],
        output_formats=list(FORMATS),
        max_n=settings.max_images,
        max_num_inference_steps=settings.max_steps,
        max_partial_images=3,
        max_prompt_characters=settings.max_prompt,
        max_request_bytes=settings.max_body,
        queue=settings.queue,
        time_limit_seconds=settings.time_limit,
    )


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **errors(401)},
)
async def metrics(service: TheService) -> Response:
    """Return the metrics in Prometheus' text format."""
    return Response(await service.scrape(), media_type=CONTENT_TYPE_LATEST)


def _capabilities(model: Model) -> ModelCapabilities:
    spec, sampling, published = model.bundle.model, model.bundle.sampling, model.bundle.published_sampling
    return ModelCapabilities(
        id=model.id,
        kind=spec.kind,
        classes=list(spec.class_names),
        num_classes=spec.num_classes,
        negative_prompt=model.bundle.text is not None,
        sizes=[_size(spec.size(size), spec) for size in spec.sizes],
        num_inference_steps=sampling.steps,
        guidance_scale=sampling.guidance,
        guidance_schedule=sampling.guidance_schedule,
        sampler=sampling.sampler,
        published=PublishedSampling(
            num_inference_steps=published.steps,
            guidance_scale=published.guidance,
            guidance_schedule=published.guidance_schedule,
            sampler=published.sampler,
        ),
        fast_previews=model.bundle.fast_preview is not None,
        bits=spec.bits,
        images_at_once=model.images_at_once,
        tokenizes=StageName.ENCODER in model.bundle.stages,
    )


def _size(size: ImageSize, spec: ModelSpec) -> SizeCapabilities:
    return SizeCapabilities(
        name=str(size),
        grid=[size.grid_height, size.grid_width],
        patches=size.patches,
        rows_of_patches=size.grid_height // spec.patch_side,
    )
