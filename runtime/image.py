"""A generated image with the settings that reproduce it, and the PNG that carries both."""

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from bitdance_edge.runtime.bundle.files import written_whole
from bitdance_edge.runtime.bundle.size import MOST, Size
from bitdance_edge.runtime.edit_settings import given_fields
from bitdance_edge.runtime.errors import RequestError
from bitdance_edge.runtime.picture import MOST_BYTES, open_picture
from bitdance_edge.runtime.reading import open_regular
from bitdance_edge.runtime.request import ImageSpec, Request
from bitdance_edge.runtime.values import file_path, shown, whole

PNG_KEY = "bitdance"
MOST_SETTINGS = 2**20  # characters
REQUIRED = ("size", "seed", "steps", "guidance")


@dataclass(frozen=True, kw_only=True, repr=False)
class GeneratedImage:
    """One image of a request.

    Attributes:
        class_id, prompt: what it shows; one of them is None, depending on the bundle.
        seed: of this image alone.
        tokens: int8 ``[h*w, C]`` in generation order.
        pixels: uint8 ``[H, W, 3]``; None where only tokens were asked for.
        settings: everything needed to reproduce it, as kept in the PNG.
    """

    index: int
    class_id: int | None
    prompt: str | None
    seed: int
    tokens: np.ndarray
    pixels: np.ndarray | None
    settings: Mapping[str, Any]

    def to_pil(self) -> Image.Image:
        """Convert to Pillow's image.

        Raises:
            RequestError: the image has tokens only.
        """
        if self.pixels is None:
            raise RequestError("this image has tokens only: the request asked for output='tokens'")
        return Image.fromarray(self.pixels)

    def __repr__(self) -> str:
        shown = f"class {self.class_id}" if self.prompt is None else repr(self.prompt)
        return f"GeneratedImage({shown}, seed {self.seed}, {self.settings['size']})"

    def _repr_png_(self) -> bytes | None:
        """The image as notebooks show it; None where there are tokens only."""
        if self.pixels is None:
            return None
        file = io.BytesIO()
        self.to_pil().save(file, format="PNG")
        return file.getvalue()

    def save(self, path: str | Path) -> None:
        """Write a PNG with the settings in its metadata, whole or not at all; raises what ``save_png`` raises."""
        save_png(self.to_pil(), path, self._info())

    def png(self) -> bytes:
        """Encode as the PNG that ``save`` writes.

        Raises:
            RequestError: the image has tokens only.
        """
        file = io.BytesIO()
        self.to_pil().save(file, format="PNG", pnginfo=self._info())
        return file.getvalue()

    def _info(self) -> PngImagePlugin.PngInfo:
        info = PngImagePlugin.PngInfo()
        info.add_text(PNG_KEY, json.dumps(self.settings))
        return info


def save_png(image: Image.Image, path: str | Path, info: PngImagePlugin.PngInfo | None = None) -> None:
    """Write a PNG, whole or not at all.

    Raises:
        RequestError: not a path, or not a ``.png`` name.
        StorageError: the file cannot be written.
    """
    path = file_path("path", path)
    if path.suffix.lower() != ".png":
        raise RequestError(
            f"{path} does not end in .png, the format that carries the settings; use to_pil() for others"
        )
    with written_whole(path) as file:
        image.save(file, format="PNG", pnginfo=info)


def image_settings(
    *,
    bundle: str,
    digest: str,
    image: ImageSpec,
    size: Size,
    steps: int,
    guidance: float,
    guidance_schedule: str,
    sampler: str,
    window: int,
    given: Mapping[str, Any],
) -> dict[str, Any]:
    """Everything needed to reproduce one image; ``given``: what it started from, as ``given_settings`` has it."""
    shown = {"class": image.class_id, "prompt": image.prompt, "negative_prompt": image.negative_prompt}
    return {
        "bundle": bundle,
        "bundle_sha256": digest,
        **{key: value for key, value in shown.items() if value is not None},
        "size": str(size),
        "seed": image.seed,
        "steps": steps,
        "guidance": guidance,
        "guidance_schedule": guidance_schedule,
        "sampler": sampler,
        **({"window": window} if window > 1 else {}),
        **given,
    }


def read_settings(path: str | Path) -> dict[str, Any]:
    """Read the settings inside a PNG that ``GeneratedImage.save`` wrote.

    Raises:
        RequestError: no such file, not a PNG, or no settings in it.
    """
    with open_regular(path, "image", MOST_BYTES) as file, open_picture(file, str(path), ["PNG"]) as image:
        text = image.info.get(PNG_KEY)
    if not isinstance(text, str):
        raise RequestError(f"{path} carries no bitdance settings; only PNGs saved by generate do")
    if (settings := parsed_settings(text)) is None:
        raise RequestError(f"the bitdance settings in {path} are not those that generate writes; the file was edited")
    return settings


def parsed_settings(text: str) -> dict[str, Any] | None:
    """Parse the text that a PNG carries under ``PNG_KEY``; None: it was not written here."""
    try:
        settings = json.loads(text) if len(text) <= MOST_SETTINGS else None
    except (ValueError, RecursionError):
        return None
    return settings if isinstance(settings, dict) else None


def request_from_settings(settings: Mapping[str, Any], pixels: np.ndarray | None = None) -> Request:
    """Make the request that reproduces the image of these settings, as the only image of its batch.

    Args:
        pixels: of that image, uint8 ``[H, W, 3]``; needed where it keeps pixels of an image that it changes.

    Raises:
        RequestError: the settings are incomplete, one is of another type, or the pixels are missing.
    """
    if not isinstance(settings, Mapping):
        raise RequestError(f"settings are {shown(settings)}; give what read_settings returns")
    if absent := [name for name in REQUIRED if settings.get(name) is None]:
        raise RequestError(f"the bitdance settings lack {', '.join(absent)}; the file was edited")
    return Request(
        classes=[settings["class"]] if "class" in settings else (),
        prompts=[settings["prompt"]] if "prompt" in settings else (),
        negative_prompt=settings.get("negative_prompt"),
        size=_size(settings["size"]),
        seed=settings["seed"],
        steps=settings["steps"],
        guidance=settings["guidance"],
        guidance_schedule=settings.get("guidance_schedule"),  # absent from the first PNGs, which used the bundle's
        sampler=settings.get("sampler"),
        window=settings.get("window", 1),
        **given_fields(settings, pixels),
    )


def _size(value: Any) -> Size:
    """The size in settings: text, or in older PNGs a list of height and width."""
    if isinstance(value, str):
        return Size.parse(value)
    if not isinstance(value, list) or len(value) != 2:
        raise RequestError(f"the size in the bitdance settings is {shown(value)}; the file was edited")
    height, width = (whole("size", side, 1, MOST) for side in value)
    return Size(width=width, height=height)
