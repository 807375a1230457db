"""The JSON that comes in and goes out. An unknown field is refused, a value of another type too.

The image fields are those of OpenAI's images API (platform.openai.com/docs/api-reference/images); ``seed``,
``num_inference_steps``, ``guidance_scale`` and ``negative_prompt`` are ours, under the names that diffusers uses.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from bitdance_edge.runtime.request import MAX_SEED, MAX_STEPS

OutputFormat = Literal["png", "jpeg", "webp"]
GuidanceSchedule = Literal["constant", "linear"]
Sampler = Literal["sde", "ode"]


def _without_fraction(value: object) -> object:
    """1.0 is a whole number in JSON."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = Annotated[int, BeforeValidator(_without_fraction)]


class Asked(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())


class GenerationFields(Asked):
    """What every request for images has. Null and absent are the same: the model's default."""

    model: str | None = Field(None, description="Id from /v1/models; the first one by default.")
    prompt: str = Field(description="Of models of classes: the id or name of one.", min_length=1)
    n: Annotated[Whole, Field(ge=1)] | None = Field(None, description="Images; 1 by default. Image i uses seed + i.")
    size: str | None = Field(None, description='"WIDTHxHEIGHT" or "auto".', examples=["auto"])
    seed: Annotated[Whole, Field(ge=0, le=MAX_SEED)] | None = Field(None, description="Drawn, and returned, if absent.")
    num_inference_steps: Annotated[Whole, Field(ge=1, le=MAX_STEPS)] | None = Field(
        None, description="Sampling steps of each patch."
    )
    guidance_scale: Annotated[float, Field(ge=1, le=100)] | None = Field(None, description="1 is off.")
    guidance_schedule: GuidanceSchedule | None = Field(None, description="Over the patches of an image.")
    sampler: Sampler | None = Field(None, description="sde is the reference's, ode its limit without noise.")
    published: bool | None = Field(
        None, description="Sample as the checkpoint was published, where nothing else is said; false by default."
    )
    negative_prompt: str | None = Field(None, description="For models of text; class models take none.")
    output_format: OutputFormat | None = Field(None, description="png by default; it carries the settings inside.")
    output_compression: Annotated[Whole, Field(ge=0, le=100)] | None = Field(
        None, description="Quality of jpeg and webp; 100 by default."
    )
    user: str | None = Field(None, description="Taken for compatibility; nothing is done with it.", max_length=1000)


class ImageRequest(GenerationFields):
    response_format: Literal["b64_json"] | None = None
    stream: bool | None = Field(None, description="Answer with server-sent events as the images are made.")
    partial_images: Annotated[Whole, Field(ge=0, le=3)] | None = Field(
        None, description="How often a stream shows what is decoded so far; 0 by default."
    )


class Prefix(Asked):
    """The start of an image, kept as it is."""

    tokens: str = Field(description="As from /v1/tokens.", min_length=1)
    patches: Whole = Field(description="How many patches of it are kept.", ge=0)


class JobRequest(GenerationFields):
    prefix: Prefix | None = Field(None, description="Complete an image from its first patches.")
    preview_every: Whole = Field(0, description="Show what is there after every so many patches; 0 for never.", ge=0)
    preview_kind: Literal["full", "fast"] = Field(
        "full", description="By the decoder, or by a linear approximation where the model's capabilities have one."
    )


class TokensRequest(Asked):
    model: str | None = None
    size: str | None = Field(None, description='"WIDTHxHEIGHT" or "auto": what the image is cropped to.')
    image: str = Field(description="An image file in base64, or its data URL.", min_length=1)


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str


class Error(BaseModel):
    error: ErrorDetail


class ImageData(BaseModel):
    b64_json: str
    seed: int = Field(description="Of this image; the same seed and settings make it again.")


class TokenDetails(BaseModel):
    text_tokens: int
    image_tokens: int


class Usage(BaseModel):
    """Ids of the prompt, 1 for a class, and the image tokens made of it."""

    input_tokens: int
    input_tokens_details: TokenDetails
    output_tokens: int
    total_tokens: int


class ImagesResponse(BaseModel):
    created: int
    background: Literal["opaque"] = "opaque"
    output_format: OutputFormat
    size: str
    data: list[ImageData]
    usage: Usage


class StageTime(BaseModel):
    launches: int
    milliseconds: float


class Timing(BaseModel):
    """Of the batch in which the images were made, which other requests may have shared."""

    waited_milliseconds: float
    milliseconds: float
    batch_images: int
    stages: dict[str, StageTime]


class Job(BaseModel):
    id: str
    object: Literal["job"] = "job"
    status: Literal["queued", "running", "completed", "failed", "cancelled"]
    created: int
    model: str
    size: str
    output_format: OutputFormat
    seed: int
    n: int
    num_inference_steps: int
    guidance_scale: float
    guidance_schedule: str
    sampler: str
    patches: int = Field(description="Of all its images.")
    patches_done: int
    data: list[ImageData | None] = Field(description="One an image; null until it is made.")
    timing: Timing | None
    error: ErrorDetail | None


class TokensResponse(BaseModel):
    model: str
    size: str
    grid: tuple[int, int] = Field(description="Rows and columns of tokens.")
    bits: int
    patches: int
    tokens: str = Field(description="In generation order, a bit each, packed, base64.")
    grid_tokens: str = Field(description="The same bits in raster order.")
    image: str = Field(description="What the decoder makes of the tokens: a PNG in base64.")


class ModelCard(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelCard]


class Health(BaseModel):
    status: Literal["ready", "starting", "restarting", "stopping"]
    workers: int
    workers_ready: int


class SizeCapabilities(BaseModel):
    name: str = Field(description="WIDTHxHEIGHT")
    grid: tuple[int, int] = Field(description="Rows and columns of tokens.")
    patches: int
    rows_of_patches: int = Field(description="An image is made by so many rows of patches, from its top.")


class PublishedSampling(BaseModel):
    """What the checkpoint was published with, and a request with ``published`` gets."""

    num_inference_steps: int
    guidance_scale: float
    guidance_schedule: str
    sampler: str


class ModelCapabilities(BaseModel):
    id: str
    kind: str
    classes: list[str] = Field(description="Names by id; ids are names where there are none.")
    num_classes: int
    negative_prompt: bool = Field(description="Whether it takes one: models of text do.")
    sizes: list[SizeCapabilities] = Field(description="The default first.")
    num_inference_steps: int = Field(description="The default.")
    guidance_scale: float = Field(description="The default.")
    guidance_schedule: str = Field(description="The default.")
    sampler: str = Field(description="The default.")
    published: PublishedSampling
    fast_previews: bool = Field(description="Whether jobs may ask for previews of kind fast.")
    bits: int
    images_at_once: int
    tokenizes: bool


class Capabilities(BaseModel):
    version: str
    devices: list[str]
    models: list[ModelCapabilities]
    output_formats: list[str]
    max_n: int
    max_num_inference_steps: int
    max_partial_images: int
    max_prompt_characters: int
    max_request_bytes: int
    queue: int
    time_limit_seconds: float
