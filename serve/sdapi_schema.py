"""The JSON of /sdapi/v1, as AUTOMATIC1111's web UI and stable-diffusion.cpp's server speak it.

Its clients send whatever the web UI has, so unknown fields are ignored, and numbers may be strings.
"""

from contextlib import suppress
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from bitdance_edge.runtime.request import MAX_SEED, MAX_STEPS
from bitdance_edge.serve.schema import MOST_NAME, MOST_TEXT

LONGEST_NUMBER = 40  # characters of a number in a text


class SdBody(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False, protected_namespaces=())


def _from_text(value: object) -> object:
    """Accept "5", 5.0 and "0.5" as numbers, as some clients send them."""
    if isinstance(value, str) and len(value) <= LONGEST_NUMBER and value.isascii() and "_" not in value:
        with suppress(ValueError):
            value = float(value) if set(value) & set(".eE") else int(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


NUMBER = r"^\s*[+-]?[0-9]{1,19}\s*$"
SdInt = Annotated[int, BeforeValidator(_from_text, json_schema_input_type=int | Annotated[str, Field(pattern=NUMBER)])]
SdFloat = Annotated[
    float, BeforeValidator(_from_text, json_schema_input_type=float | Annotated[str, Field(pattern=NUMBER)])
]


class OverrideSettings(SdBody):
    """Settings of the web UI for one request, of which this server knows one."""

    sd_model_checkpoint: str | None = Field(None, max_length=MOST_NAME)


class TextToImage(SdBody):
    """A field that is null or absent takes the model's default. Fields that are not here are accepted and ignored."""

    prompt: str = Field(
        description="A prompt; for a class-conditional model, the id or name of a class.",
        min_length=1,
        max_length=MOST_TEXT,
    )
    negative_prompt: str | None = Field(None, description="Ignored by class-conditional models.", max_length=MOST_TEXT)
    seed: Annotated[SdInt, Field(ge=-1, le=MAX_SEED)] | None = Field(None, description="-1: drawn at random.")
    steps: Annotated[SdInt, Field(ge=1, le=MAX_STEPS)] | None = None
    cfg_scale: Annotated[SdFloat, Field(ge=0, le=100)] | None = Field(
        None, description="Guidance strength; 1 and less is off."
    )
    width: Annotated[SdInt, Field(ge=1, le=65_536)] | None = Field(
        None, description="With height: the model's nearest size is made."
    )
    height: Annotated[SdInt, Field(ge=1, le=65_536)] | None = None
    batch_size: Annotated[SdInt, Field(ge=1)] | None = None
    n_iter: Annotated[SdInt, Field(ge=1)] | None = Field(None, description="Makes batch_size times n_iter images.")
    sampler_name: str | None = Field(
        None, description="sde or ode; any other takes the model's default.", max_length=MOST_NAME
    )
    override_settings: OverrideSettings | None = None
    send_images: bool | None = Field(None, description="false: the answer has no images.")


class ImageToImage(TextToImage):
    """Varies an image, or redraws a part of it; width and height are the image's own by default."""

    init_images: list[Annotated[str, Field(min_length=1)]] = Field(
        description="Images in base64 or as data URLs, of which the first is taken.", min_length=1, max_length=16
    )
    mask: str | None = Field(None, description="In base64: white, or opaque, where the image is redrawn.")
    inpainting_mask_invert: Annotated[SdInt, Field(ge=0, le=1)] | bool | None = None
    denoising_strength: Annotated[SdFloat, Field(ge=0, le=1)] | None = Field(
        None, description="How much is drawn anew; 0.75 by default."
    )
    resize_mode: Annotated[SdInt, Field(ge=0, le=3)] | None = Field(
        None, description="0 and 3: stretched, 1: its centre, 2: all of it, with black beside it."
    )


class GeneratedImages(BaseModel):
    images: list[str] = Field(description="PNG files in base64, each with its `parameters` as text.")
    parameters: dict[str, Any] = Field(description="The request as it was understood, without its images.")
    info: str = Field(description="JSON: the prompts, seeds, size and settings of the images.")


class SdModel(BaseModel):
    title: str
    model_name: str
    hash: str
    sha256: str
    filename: str
    config: None = None


class SdSampler(BaseModel):
    name: str
    aliases: list[str]
    options: dict[str, str] = {}


class SdScheduler(BaseModel):
    name: str
    label: str


class SdUpscaler(BaseModel):
    name: str
    model_name: None = None
    model_path: None = None
    model_url: None = None
    scale: float = 1


class SdOptions(BaseModel):
    sd_model_checkpoint: str
    samples_format: Literal["png"] = "png"


class ProgressState(BaseModel):
    job: str
    job_count: int
    job_no: int
    sampling_step: int = Field(description="Patches that are made.")
    sampling_steps: int = Field(description="Patches in total.")
    skipped: bool = False
    interrupted: bool = False


class Progress(BaseModel):
    """Of the requests of the client's address."""

    progress: float
    eta_relative: float
    state: ProgressState
    current_image: str | None = None
    textinfo: str | None = None
