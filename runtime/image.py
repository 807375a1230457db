"""A generated image with the settings that reproduce it, and the PNG that carries both."""

import base64
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin, UnidentifiedImageError

from bitdance_edge.runtime.bundle.files import written_whole
from bitdance_edge.runtime.bundle.size import Size
from bitdance_edge.runtime.errors import RequestError
from bitdance_edge.runtime.request import ImageSpec, Request

PNG_KEY = "bitdance"


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
        info = PngImagePlugin.PngInfo()
        info.add_text(PNG_KEY, json.dumps(self.settings))
        save_png(self.to_pil(), path, info)


def save_png(image: Image.Image, path: str | Path, info: PngImagePlugin.PngInfo | None = None) -> None:
    """Write a PNG, whole or not at all.

    Raises:
        RequestError: not a ``.png`` name.
        StorageError: the file cannot be written.
    """
    path = Path(path)
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
    prefix: np.ndarray,
) -> dict[str, Any]:
    """Everything needed to reproduce one image; the prefix ``[K, P, C]`` is stored as packed bits."""
    shown = {"class": image.class_id, "prompt": image.prompt, "negative_prompt": image.negative_prompt}
    settings: dict[str, Any] = {
        "bundle": bundle,
        "bundle_sha256": digest,
        **{key: value for key, value in shown.items() if value is not None},
        "size": str(size),
        "seed": image.seed,
        "steps": steps,
        "guidance": guidance,
        "guidance_schedule": guidance_schedule,
        "sampler": sampler,
    }
    if prefix.size:
        tokens = prefix.reshape(-1, prefix.shape[-1])
        settings["prefix"] = base64.b64encode(np.packbits(tokens > 0).tobytes()).decode()
        settings["prefix_shape"] = list(tokens.shape)
    return settings


def read_settings(path: str | Path) -> dict[str, Any]:
    """Read the settings inside a PNG that ``GeneratedImage.save`` wrote.

    Raises:
        RequestError: no such file, not an image, or no settings in it.
    """
    with open_image(path) as image:
        text = image.info.get(PNG_KEY)
    try:
        settings = json.loads(text or "")
    except ValueError:
        raise RequestError(f"{path} carries no bitdance settings; only PNGs saved by generate do") from None
    return settings


def request_from_settings(settings: Mapping[str, Any]) -> Request:
    """Make the request that reproduces the image of these settings, as the only image of its batch.

    Raises:
        RequestError: the settings are incomplete.
    """
    prefix = None
    try:
        if "prefix" in settings:
            tokens, bits = settings["prefix_shape"]
            packed = np.frombuffer(base64.b64decode(settings["prefix"]), np.uint8)
            prefix = np.unpackbits(packed, count=tokens * bits).reshape(tokens, bits) * 2.0 - 1.0
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
            prefix=prefix,
        )
    except (KeyError, ValueError, TypeError) as error:
        raise RequestError(f"the bitdance settings are incomplete ({error!r}); the file was edited") from None


def _size(value: Any) -> Size:
    """The size in settings: text, or in older PNGs a list of height and width."""
    if isinstance(value, str):
        return Size.parse(value)
    height, width = value
    return Size(width=width, height=height)


def open_image(path: str | Path) -> Image.Image:
    """Open an image file.

    Raises:
        RequestError: there is no such file, or it is not an image.
    """
    try:
        return Image.open(path)
    except FileNotFoundError:
        raise RequestError(f"no image at {path}") from None
    except (UnidentifiedImageError, OSError) as error:
        raise RequestError(f"{path} cannot be read as an image: {error}") from None


def load_pixels(path: str | Path, height: int, width: int) -> np.ndarray:
    """Read an image file as uint8 ``[height, width, 3]``: the largest centred crop of that shape, resized.

    Raises:
        RequestError: it cannot be read.
    """
    with open_image(path) as image:
        try:
            rgb = image.convert("RGB")
        except OSError as error:
            raise RequestError(f"{path} cannot be read to its end ({error}); it may be truncated") from None
    return fitted_pixels(rgb, height, width)


def fitted_pixels(rgb: Image.Image, height: int, width: int) -> np.ndarray:
    """Resize the largest centred crop of that shape: uint8 ``[height, width, 3]``."""
    scale = min(rgb.width / width, rgb.height / height)
    left, top = (rgb.width - width * scale) / 2, (rgb.height - height * scale) / 2
    box = (left, top, left + width * scale, top + height * scale)
    return np.asarray(rgb.resize((width, height), Image.Resampling.LANCZOS, box=box))
