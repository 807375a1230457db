"""The nodes; they use ``bitdance_edge.runtime`` only (docs.comfy.org/custom-nodes/backend/server_overview)."""

from dataclasses import dataclass
from typing import Any

import comfy.model_management  # pyright: ignore[reportMissingImports]
import comfy.utils  # pyright: ignore[reportMissingImports]
import numpy as np
import torch
from PIL import Image

from bitdance_edge.runtime import (
    GeneratedImage,
    ImageDone,
    PatchDone,
    Pipeline,
    Preview,
    Request,
    RequestError,
    Size,
    fit_pixels,
)
from bitdance_edge.runtime.bundle.specs import ImageSize
from bitdance_edge.runtime.fit import FITS
from bitdance_edge.runtime.mask import place_mask
from bitdance_edge.runtime.request import MAX_SEED, MAX_STEPS

CATEGORY = "BitDance"
MOST = 64  # images in one run of the node
MOST_PIXELS = 16384  # across
PREVIEWS = 8  # of each image
PREVIEW_SIZE = 512
DEFAULTED = ("steps", "guidance", "negative_prompt")  # inputs whose empty value is the bundle's default


@dataclass(frozen=True)
class Tokens:
    """Binary tokens of images, int8 ``[B, h*w, C]``, with their seeds, which decoders that use noise need, and size."""

    tokens: np.ndarray
    seeds: list[int]
    size: Size


Settings = list[dict[str, Any]]  # of each image: what makes it again
Generated = tuple[Tokens, Settings]


class Generate:
    """Generates tokens of a prompt or a class."""

    CATEGORY = CATEGORY
    FUNCTION = "generate"
    RETURN_TYPES = ("BITDANCE_TOKENS", "BITDANCE_SETTINGS")
    RETURN_NAMES = ("tokens", "settings")
    DESCRIPTION = "Generate binary tokens patch by patch; image i uses seed + i"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        steps = {"default": 0, "min": 0, "max": MAX_STEPS, "tooltip": "0: the bundle's default"}
        guidance = {"default": 0.0, "min": 0.0, "max": 100.0, "step": 0.1, "tooltip": "0: the bundle's default; 1: off"}
        return {
            "required": {
                "pipeline": ("BITDANCE",),
                "prompt": ("STRING", {"default": "7", "tooltip": "A prompt, or the id or name of a class"}),
                "count": ("INT", {"default": 1, "min": 1, "max": MOST}),
                "seed": ("INT", {"default": 0, "min": 0, "max": MAX_SEED - MOST, "control_after_generate": True}),
                "steps": ("INT", steps),
                "guidance": ("FLOAT", guidance),
                "width": ("INT", {"default": 0, "min": 0, "max": MOST_PIXELS, "tooltip": "0: the bundle's default"}),
                "height": ("INT", {"default": 0, "min": 0, "max": MOST_PIXELS, "tooltip": "0: the bundle's default"}),
                "negative_prompt": ("STRING", {"default": "", "tooltip": "For text-to-image models"}),
            }
        }

    def generate(  # ComfyUI passes each input of a node by its name
        self, pipeline: Pipeline, *, prompt: str, count: int, width: int, height: int, **settings: Any
    ) -> Generated:
        """Generate tokens. Raises: RequestError: the bundle cannot serve the request; ComfyUI's exception on Cancel."""
        size = _size(pipeline, width, height)
        return _generated(pipeline, size, prompt=prompt, count=count, **settings)


class Complete:
    """Completes images from their first rows."""

    CATEGORY = CATEGORY
    FUNCTION = "complete"
    RETURN_TYPES = ("BITDANCE_TOKENS", "BITDANCE_SETTINGS")
    RETURN_NAMES = ("tokens", "settings")
    DESCRIPTION = "Keep the first rows of patches of an image and generate the others"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        inputs = Generate.INPUT_TYPES()["required"]
        names = ("prompt", "count", "seed", "steps", "guidance", "negative_prompt")
        rows = {"default": 2, "min": 0, "max": MOST_PIXELS, "tooltip": "Rows of patches to keep, from the top"}
        required = {"pipeline": inputs["pipeline"], "tokens": ("BITDANCE_TOKENS",), "rows": ("INT", rows)}
        return {"required": {**required, **{name: inputs[name] for name in names}}}

    def complete(
        self, pipeline: Pipeline, tokens: Tokens, *, rows: int, prompt: str, count: int, **settings: Any
    ) -> Generated:
        """Complete the first image of a batch. Raises: RequestError: it has fewer rows, or as ``generate``."""
        size = pipeline.bundle.model.size(tokens.size)
        if rows > size.patches_down:
            raise RequestError(f"rows is {rows}; an image of {size} has {size.patches_down} rows of patches")
        kept = rows * size.patches_across * pipeline.bundle.model.tokens_per_step
        prefix = tokens.tokens[0, :kept] if kept else None
        return _generated(pipeline, size, prompt=prompt, count=count, prefix=prefix, **settings)


class Edit:
    """Draws an image anew: inside a mask, or all of it with a strength below 1."""

    CATEGORY = CATEGORY
    FUNCTION = "edit"
    RETURN_TYPES = ("IMAGE", "BITDANCE_SETTINGS")
    DESCRIPTION = "Redraw the masked part of an image, or vary it; image i uses seed + i * candidates"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        inputs = Generate.INPUT_TYPES()["required"]
        strength = {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.05, "tooltip": "Below 0.5 the picture stays"}
        candidates = {"default": 1, "min": 1, "max": MOST, "tooltip": "Of so many, keep the one that fits best"}
        blend = {"default": True, "tooltip": "Keep the pixels outside the mask, and join what is drawn to them"}
        required = {
            "pipeline": inputs["pipeline"],
            "image": ("IMAGE",),
            **{name: inputs[name] for name in ("prompt", "count", "seed", "steps", "guidance", "width", "height")},
            "negative_prompt": inputs["negative_prompt"],
            "strength": ("FLOAT", strength),
            "candidates": ("INT", candidates),
            "blend": ("BOOLEAN", blend),
            "fit": (list(FITS), {"tooltip": "How an image of another size is brought to the size"}),
        }
        return {"required": required, "optional": {"mask": ("MASK",)}}

    def edit(  # ComfyUI passes each input of a node by its name
        self,
        pipeline: Pipeline,
        image: torch.Tensor,
        *,
        prompt: str,
        count: int,
        width: int,
        height: int,
        fit: str,
        mask: torch.Tensor | None = None,
        **settings: Any,
    ) -> tuple[torch.Tensor, Settings]:
        """Redraw the first image of a batch, float32 ``[B, H, W, 3]`` from 0 to 1, where ``mask`` ``[B, h, w]`` is 1.

        Raises: RequestError: the bundle cannot serve the request; ComfyUI's exception on Cancel.
        """
        size = _size(pipeline, width, height)
        picture = (image[0] * 255).round().byte().numpy()
        white = None
        if mask is not None:
            if not mask.any():  # what Load image gives where nothing was painted, of a size of its own
                raise RequestError("the mask is empty: paint what to redraw in the mask editor, or disconnect the mask")
            found = Size(width=picture.shape[1], height=picture.shape[0])
            white = place_mask(mask[0].numpy() > 0.5, found, size.pixels, fit, "the mask")
        request = Request(
            **_subject(pipeline, prompt),
            count=count,
            size=size.pixels,
            init=fit_pixels(picture, size.pixels, fit),
            mask=white,
            preview_every=max(1, size.patches // PREVIEWS),
            **_with_defaults(settings),
        )
        images = _shown(pipeline, request, count)
        pixels = torch.from_numpy(np.stack([np.asarray(each.to_pil()) for each in images])).float() / 255
        return (pixels, [dict(each.settings) for each in images])


class Encode:
    """Encodes images as tokens."""

    CATEGORY = CATEGORY
    FUNCTION = "encode"
    RETURN_TYPES = ("BITDANCE_TOKENS",)
    RETURN_NAMES = ("tokens",)
    DESCRIPTION = "Encode images as binary tokens, which Complete goes on from and Decode shows"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        inputs = Generate.INPUT_TYPES()["required"]
        fit = {"tooltip": "How an image of another size is brought to the size"}
        sides = {name: inputs[name] for name in ("width", "height")}
        return {"required": {"pipeline": ("BITDANCE",), "image": ("IMAGE",), **sides, "fit": (list(FITS), fit)}}

    def encode(self, pipeline: Pipeline, image: torch.Tensor, width: int, height: int, fit: str) -> tuple[Tokens]:
        """Encode images, float32 ``[B, H, W, 3]`` from 0 to 1. Raises: RequestError: the bundle has no encoder."""
        size = _size(pipeline, width, height).pixels
        pictures = (image * 255).round().byte().cpu().numpy()
        tokens = pipeline.tokenize(np.stack([fit_pixels(picture, size, fit) for picture in pictures]))
        return (Tokens(tokens, [0] * len(tokens), size),)


class Decode:
    """Decodes tokens to images."""

    CATEGORY = CATEGORY
    FUNCTION = "decode"
    RETURN_TYPES = ("IMAGE",)
    DESCRIPTION = "Decode binary tokens to images"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"pipeline": ("BITDANCE",), "tokens": ("BITDANCE_TOKENS",)}}

    def decode(self, pipeline: Pipeline, tokens: Tokens) -> tuple[torch.Tensor]:
        """Decode to ComfyUI's images: float32 ``[B, H, W, 3]`` from 0 to 1."""
        pixels = pipeline.decode(tokens.tokens, tokens.seeds, tokens.size)
        return (torch.from_numpy(pixels).float() / 255,)


def _size(pipeline: Pipeline, width: int, height: int) -> ImageSize:
    return pipeline.bundle.model.size(Size(width=width, height=height) if height or width else None)


def _subject(pipeline: Pipeline, prompt: str) -> dict[str, list[str]]:
    return {"classes" if pipeline.bundle.text is None else "prompts": [prompt]}


def _with_defaults(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of a node, with None for those that are empty: the bundle's default."""
    return {name: value or None if name in DEFAULTED else value for name, value in settings.items()}


def _generated(pipeline: Pipeline, size: ImageSize, *, prompt: str, count: int, **settings: Any) -> Generated:
    """Generate tokens with the settings of a node."""
    request = Request(
        **_subject(pipeline, prompt),
        count=count,
        size=size.pixels,
        preview_every=max(1, size.patches // PREVIEWS),
        output="tokens",
        **_with_defaults(settings),
    )
    images = _shown(pipeline, request, count)
    tokens = Tokens(np.stack([image.tokens for image in images]), [image.seed for image in images], size.pixels)
    return (tokens, [dict(image.settings) for image in images])


def _shown(pipeline: Pipeline, request: Request, count: int) -> list[GeneratedImage]:
    """Generate with ComfyUI's progress bar and previews. Raises: ComfyUI's exception on Cancel."""
    progress, done, images = None, 0, []
    for event in pipeline.stream(request):
        comfy.model_management.throw_exception_if_processing_interrupted()
        if isinstance(event, PatchDone):
            progress = progress or comfy.utils.ProgressBar(count * event.patches)
            done += len(event.tokens)
            progress.update_absolute(done)
        elif isinstance(event, Preview) and progress is not None:
            shown = Image.fromarray(event.pixels[0])
            progress.update_absolute(done, preview=("JPEG", shown, PREVIEW_SIZE))
        elif isinstance(event, ImageDone):
            images.append(event.image)
    return images
