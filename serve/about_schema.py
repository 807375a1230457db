"""The JSON of what a server says about itself: its models, capabilities and health."""

from typing import Literal

from pydantic import BaseModel, Field

from bitdance_edge.serve.schema import Pair


class ModelCard(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int = 0  # a bundle has no time, and that of its files differs from machine to machine
    owned_by: str = "bitdance-edge"


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelCard]


class Alive(BaseModel):
    status: Literal["alive"] = "alive"


class Health(BaseModel):
    status: Literal["ready", "starting", "restarting", "stopping"]
    workers: int
    workers_ready: int


class SizeCapabilities(BaseModel):
    name: str = Field(description="WIDTHxHEIGHT")
    grid: Pair = Field(description="Rows and columns of tokens.")
    patches: int
    rows_of_patches: int = Field(description="Number of rows of patches; they are made from top to bottom.")


class PublishedSampling(BaseModel):
    """The published sampling settings of the checkpoint, which a request with `published` uses as defaults."""

    num_inference_steps: int
    guidance_scale: float
    guidance_schedule: str
    sampler: str


class ModelCapabilities(BaseModel):
    id: str
    kind: str
    classes: list[str] = Field(description="Names by id; empty if classes have ids only.")
    num_classes: int
    negative_prompt: bool = Field(description="Whether the model takes a negative prompt; text-to-image models do.")
    sizes: list[SizeCapabilities] = Field(description="The first is the default.")
    num_inference_steps: int = Field(description="The default.")
    guidance_scale: float = Field(description="The default.")
    guidance_schedule: str = Field(description="The default.")
    sampler: str = Field(description="The default.")
    published: PublishedSampling
    fast_previews: bool = Field(description="Whether jobs may ask for previews of kind `fast`.")
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
