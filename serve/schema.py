"""The JSON of requests and responses. Unknown fields and values of another type are refused.

The image fields are those of OpenAI's images API (platform.openai.com/docs/api-reference/images); ``seed``,
``num_inference_steps``, ``guidance_scale`` and ``negative_prompt`` are ours, under the names that diffusers uses.
Every text but a file in base64 has a largest length here, and a file that of the body, so that nothing is parsed
further before its size is known.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from bitdance_edge.runtime.request import MAX_SEED, MAX_STEPS, MAX_WINDOW
from bitdance_edge.serve.settings import CHARACTER, SMALL_BODY

OutputFormat = Literal["png", "jpeg", "webp"]
GuidanceSchedule = Literal["constant", "linear"]
Sampler = Literal["sde", "ode"]
MOST_TEXT = SMALL_BODY // CHARACTER  # characters of a prompt; --max-prompt is smaller
MOST_NAME = 200  # characters of a model's id
MOST_SIZE = 40
Fit = Literal["cover", "contain", "stretch"]
MAX_CANDIDATES = 64  # of each image of a job


def _without_fraction(value: object) -> object:
    """Accept 1.0 as 1: JSON has one type of number."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _not_refused(values: dict[str, str]) -> BeforeValidator:
    """Refuse values that OpenAI's API has and this one cannot do, each with its reason."""

    def check(value: object) -> object:
        if isinstance(value, str) and value in values:
            raise ValueError(values[value])
        return value

    return BeforeValidator(check)


def not_had(reason: str) -> BeforeValidator:
    """Refuse every value but null of a field that this server cannot do, with its reason."""

    def check(value: object) -> None:
        if value is not None:
            raise ValueError(reason)

    return BeforeValidator(check)


Whole = Annotated[int, BeforeValidator(_without_fraction)]
Pair = Annotated[list[int], Field(min_length=2, max_length=2)]
NO_URL = "response_format is 'url'; this server keeps no files: use 'b64_json', which brings the image in the answer"
NO_FRAMES = "{} is about GIFs; this server makes one still image each, as png, jpeg or webp: omit it"
NO_SVG = "svg is about images of lines; the models make pixels, as png, jpeg or webp: omit it"
NO_MARKUP = "markup is not understood by the models: send a mask of what to redraw, and say in prompt what it shows"
NO_TRANSPARENCY = "background is 'transparent'; the models make opaque images only: use 'auto' or 'opaque'"


class RequestBody(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())


class GenerationFields(RequestBody):
    """The fields of every request for images. A field that is null or absent takes the model's default."""

    model: str | None = Field(None, description="Id from /v1/models; by default the first model.", max_length=MOST_NAME)
    prompt: str = Field(
        description="A prompt; for a class-conditional model, the id or name of a class.",
        min_length=1,
        max_length=MOST_TEXT,
    )
    n: Annotated[Whole, Field(ge=1)] | None = Field(
        None, description="Number of images, 1 by default. Image i uses seed + i."
    )
    size: str | None = Field(None, description='"WIDTHxHEIGHT" or "auto".', examples=["auto"], max_length=MOST_SIZE)
    seed: Annotated[Whole, Field(ge=0, le=MAX_SEED)] | None = Field(
        None, description="Drawn at random if absent; the response says which."
    )
    num_inference_steps: Annotated[Whole, Field(ge=1, le=MAX_STEPS)] | None = Field(
        None, description="Sampling steps of each patch."
    )
    guidance_scale: Annotated[float, Field(ge=1, le=100)] | None = Field(
        None, description="Guidance strength; 1 is off."
    )
    guidance_schedule: GuidanceSchedule | None = Field(
        None, description="How guidance changes over the patches of an image."
    )
    sampler: Sampler | None = Field(None, description="sde: the reference sampler, with noise; ode: without noise.")
    window: Annotated[Whole, Field(ge=1, le=MAX_WINDOW)] | Literal["auto"] | None = Field(
        None,
        description="Head evaluations in one pass: 1, the default, one after the other; auto: what is faster. Images "
        "are the same but for rounding.",
    )
    published: bool | None = Field(
        None, description="Use the published sampling settings of the checkpoint as defaults; false by default."
    )
    negative_prompt: str | None = Field(None, description="For text-to-image models only.", max_length=MOST_TEXT)
    output_format: OutputFormat | None = Field(
        None, description="png by default; a PNG also carries the settings that reproduce it."
    )
    output_compression: Annotated[Whole, Field(ge=0, le=100)] | None = Field(
        None, description="Quality of jpeg and webp, 100 by default."
    )
    user: str | None = Field(None, description="Accepted for compatibility and ignored.", max_length=1000)


class OpenAIFields(GenerationFields):
    """Fields of OpenAI's API whose values change nothing here; a value that this server cannot do is refused."""

    response_format: Annotated[Literal["b64_json"] | None, _not_refused({"url": NO_URL})] = None
    background: Annotated[Literal["auto", "opaque"] | None, _not_refused({"transparent": NO_TRANSPARENCY})] = None
    quality: Literal["auto", "standard", "hd", "low", "medium", "high", "xhigh", "max"] | None = Field(
        None, description="Accepted and ignored; num_inference_steps sets the quality."
    )
    complexity: Literal["low", "medium", "high"] | None = Field(None, description="Accepted and ignored.")
    style: Literal["vivid", "natural"] | None = Field(None, description="Accepted and ignored.")
    moderation: Literal["auto", "low"] | None = Field(None, description="Accepted and ignored; nothing is moderated.")
    safety_identifier: str | None = Field(None, description="Accepted and ignored.", max_length=1000)
    frame_count: Annotated[None, not_had(NO_FRAMES.format("frame_count"))] = None
    frame_duration_ms: Annotated[None, not_had(NO_FRAMES.format("frame_duration_ms"))] = None
    svg: Annotated[None, not_had(NO_SVG)] = None


class ImageRequest(OpenAIFields):
    stream: bool | None = Field(None, description="Respond with server-sent events while the images are made.")
    partial_images: Annotated[Whole, Field(ge=0, le=3)] | None = Field(
        None, description="Number of previews of each image in a stream; 0 by default."
    )


class Prefix(RequestBody):
    """The first patches of an image, which are kept."""

    tokens: str = Field(description="`tokens` from /v1/tokens.", min_length=1)
    patches: Whole = Field(description="Number of patches to keep.", ge=0)


class Edit(RequestBody):
    """An image to change. It needs a mask, a strength, or both."""

    image: str | None = Field(None, description="A PNG, JPEG or WebP file in base64, or as a data URL.", min_length=1)
    tokens: str | None = Field(None, description="In place of `image`: `tokens` from /v1/tokens.", min_length=1)
    fit: Fit = Field("cover", description="How an image of another size, and its mask, are brought to `size`.")
    mask: str | None = Field(
        None,
        description="A gray image of the same size, in base64: white where the image is redrawn.",
        min_length=1,
    )
    strength: float | list[float] | None = Field(
        None,
        description="How much is drawn anew, from 0 to 1, or one such number for each patch; 1 by default with a mask.",
    )
    candidates: Annotated[Whole, Field(ge=1, le=MAX_CANDIDATES)] = Field(
        1, description="Of so many drawings of each image, keep the one that fits best what the mask keeps after it."
    )
    blend: bool = Field(True, description="Keep the pixels outside the mask, and join what is drawn to them.")


class JobRequest(GenerationFields):
    prefix: Prefix | None = Field(None, description="Complete an image from its first patches.")
    edit: Edit | None = Field(None, description="Change an image.")
    preview_every: Whole = Field(
        0, description="Send a preview each time this number of patches has been made; 0: no previews.", ge=0
    )
    preview_kind: Literal["full", "fast"] = Field(
        "full",
        description="full: by the decoder; fast: by a linear approximation, if the capabilities of the model say so.",
    )


class TokensRequest(RequestBody):
    model: str | None = Field(None, max_length=MOST_NAME)
    size: str | None = Field(
        None,
        description='"WIDTHxHEIGHT" or "auto"; the image is brought to it.',
        max_length=MOST_SIZE,
    )
    fit: Fit = Field("cover", description="How: its centre (cover), all of it with black beside it, or stretched.")
    image: str = Field(description="A PNG, JPEG or WebP file in base64, or as a data URL.", min_length=1)


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str


class Error(BaseModel):
    error: ErrorDetail


class ImageData(BaseModel):
    b64_json: str
    seed: int = Field(description="Seed of this image; the same seed and settings reproduce it.")


class TokenDetails(BaseModel):
    text_tokens: int
    image_tokens: int


class Usage(BaseModel):
    """The number of prompt tokens, 1 for a class, and of image tokens."""

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


class StageTiming(BaseModel):
    launches: int
    milliseconds: float


class Timing(BaseModel):
    """Times of the batch that made the images; other requests may have shared it."""

    waited_milliseconds: float
    milliseconds: float
    batch_images: int
    stages: dict[str, StageTiming]


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
    patches: int = Field(description="Patches of all images in total.")
    patches_done: int
    data: list[ImageData | None] = Field(description="One entry for each image; null until it is finished.")
    timing: Timing | None
    error: ErrorDetail | None


class TokensResponse(BaseModel):
    model: str
    size: str
    grid: Pair = Field(description="Rows and columns of tokens.")
    bits: int
    patches: int
    tokens: str = Field(description="Packed bits in generation order, in base64.")
    grid_tokens: str = Field(description="The same bits in raster order.")
    image: str = Field(description="The image decoded from the tokens: a PNG in base64.")
