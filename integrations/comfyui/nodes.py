"""The nodes; they use ``bitdance_edge.runtime`` only (docs.comfy.org/custom-nodes/backend/server_overview)."""

from dataclasses import dataclass
from typing import Any

import comfy.model_management  # pyright: ignore[reportMissingImports]
import comfy.utils  # pyright: ignore[reportMissingImports]
import numpy as np
import torch
from PIL import Image

from bitdance_edge.runtime import Bundle, ImageDone, PatchDone, Pipeline, Preview, Request, Size
from bitdance_edge.runtime.request import MAX_SEED, MAX_STEPS

CATEGORY = "BitDance"
MOST = 64  # images in one run of the node
MOST_PIXELS = 16384  # across
PREVIEWS = 8  # of each image
PREVIEW_SIZE = 512


@dataclass(frozen=True)
class Tokens:
    """Binary tokens of images, int8 ``[B, h*w, C]``, with their seeds, which decoders that use noise need, and size."""

    tokens: np.ndarray
    seeds: list[int]
    size: Size


class LoadBundle:
    """Opens a bundle."""

    CATEGORY = CATEGORY
    FUNCTION = "load"
    RETURN_TYPES = ("BITDANCE",)
    RETURN_NAMES = ("pipeline",)
    DESCRIPTION = "Open a bundle written by: bitdance-edge export"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "bundle": ("STRING", {"default": "bundles/digits-4x", "tooltip": "Folder of the bundle"}),
                "device": (["auto", "cpu"],),
            }
        }

    @classmethod
    def IS_CHANGED(cls, bundle: str, device: str) -> str:
        """Return a digest that changes when the bundle is exported again, so that ComfyUI loads it again."""
        return Bundle.open(bundle).digest

    def load(self, bundle: str, device: str) -> tuple[Pipeline]:
        return (Pipeline.open(bundle, device=device),)


class Generate:
    """Generates tokens of a prompt or a class."""

    CATEGORY = CATEGORY
    FUNCTION = "generate"
    RETURN_TYPES = ("BITDANCE_TOKENS",)
    RETURN_NAMES = ("tokens",)
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

    def generate(
        self,
        pipeline: Pipeline,
        prompt: str,
        count: int,
        seed: int,
        steps: int,
        guidance: float,
        width: int,
        height: int,
        negative_prompt: str,
    ) -> tuple[Tokens]:
        """Generate tokens. Raises: RequestError: the bundle cannot serve the request; ComfyUI's exception on Cancel."""
        model, text = pipeline.bundle.model, pipeline.bundle.text is not None
        size = model.size(Size(width=width, height=height) if height or width else None)
        request = Request(
            classes=() if text else [prompt],
            prompts=[prompt] if text else (),
            negative_prompt=negative_prompt or None,
            count=count,
            seed=seed,
            steps=steps or None,
            guidance=guidance or None,
            size=size.pixels,
            preview_every=max(1, size.patches // PREVIEWS),
            output="tokens",
        )
        progress = comfy.utils.ProgressBar(count * size.patches)
        images, done = [], 0
        for event in pipeline.stream(request):
            comfy.model_management.throw_exception_if_processing_interrupted()
            if isinstance(event, PatchDone):
                done += len(event.tokens)
                progress.update_absolute(done)
            elif isinstance(event, Preview):
                shown = Image.fromarray(event.pixels[0])
                progress.update_absolute(done, preview=("JPEG", shown, PREVIEW_SIZE))
            elif isinstance(event, ImageDone):
                images.append(event.image)
        tokens = np.stack([image.tokens for image in images])
        return (Tokens(tokens, [image.seed for image in images], size.pixels),)


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
