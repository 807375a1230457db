"""The node that saves images, each with the settings that make it again and with ComfyUI's workflow."""

import json
from pathlib import Path
from typing import Any

import folder_paths  # pyright: ignore[reportMissingImports]
import torch
from comfy.cli_args import args  # pyright: ignore[reportMissingImports]
from PIL import Image, PngImagePlugin

from bitdance_edge.runtime import RequestError
from bitdance_edge.runtime.image import PNG_KEY, save_png


class SaveImages:
    """Saves images as PNGs."""

    CATEGORY = "BitDance"
    FUNCTION = "save"
    RETURN_TYPES = ()
    OUTPUT_NODE = True
    DESCRIPTION = "Save images with what makes them again: bitdance-edge generate BUNDLE --like FILE"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "images": ("IMAGE",),
                "settings": ("BITDANCE_SETTINGS",),
                "filename_prefix": ("STRING", {"default": "bitdance"}),
            },
            "hidden": {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO"},
        }

    def save(
        self,
        images: torch.Tensor,
        settings: list[dict[str, Any]],
        filename_prefix: str,
        prompt: dict[str, Any] | None = None,
        extra_pnginfo: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Write one PNG an image, float32 ``[B, H, W, 3]`` from 0 to 1, into ComfyUI's output folder.

        Raises:
            RequestError: the settings are of another number of images.
            StorageError: a file cannot be written.
        """
        if len(images) != len(settings):
            raise RequestError(f"{len(images)} images and the settings of {len(settings)}; connect both to one node")
        height, width = images.shape[1:3]
        output = folder_paths.get_output_directory()
        folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(filename_prefix, output, width, height)
        saved = []
        for index, (image, own) in enumerate(zip(images, settings, strict=True)):
            info = PngImagePlugin.PngInfo()
            info.add_text(PNG_KEY, json.dumps(own))
            if not args.disable_metadata:
                for key, value in {"prompt": prompt, **(extra_pnginfo or {})}.items():
                    if value is not None:
                        info.add_text(key, json.dumps(value))
            file = f"{name.replace('%batch_num%', str(index))}_{counter + index:05}_.png"
            save_png(Image.fromarray((image * 255).round().byte().cpu().numpy()), Path(folder) / file, info)
            saved.append({"filename": file, "subfolder": subfolder, "type": "output"})
        return {"ui": {"images": saved}}
