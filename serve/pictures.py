"""Encodes pixels as image files in base64 and decodes them, in threads, so that the event loop is free."""

import asyncio
import base64
import binascii
import io
import json
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, TypeVar

import numpy as np
from PIL import Image, PngImagePlugin

from bitdance_edge.runtime import RequestError, Size, fit_pixels
from bitdance_edge.runtime.image import PNG_KEY
from bitdance_edge.runtime.mask import read_mask
from bitdance_edge.runtime.picture import read_picture
from bitdance_edge.serve.errors import ApiError

FORMATS = ("png", "jpeg", "webp")  # that are written
Decoded = TypeVar("Decoded")
READ = ("PNG", "JPEG", "WebP")  # of an image to tokenise


async def encoded(
    pixels: np.ndarray,
    output_format: str = "png",
    quality: int | None = None,
    settings: Mapping[str, Any] | None = None,
) -> str:
    """Encode uint8 ``[H, W, 3]`` as an image file in base64; a PNG carries ``settings``, which reproduce it."""
    return await asyncio.to_thread(_encode, pixels, output_format, quality, settings)


async def decoded(text: str, size: Size, fit: str = "cover") -> np.ndarray:
    """Decode an image file in base64 or a data URL to uint8 ``[H, W, 3]``, brought to ``size``.

    Raises:
        ApiError: 400: it is not an image, is truncated or is too large.
    """
    return fit_pixels(await opened(text, "image"), size, fit)


async def opened(text: str, name: str) -> Image.Image:
    """Decode an image file in base64 or a data URL to an upright picture of mode RGB.

    Args:
        name: of the field, for messages; errors are about its first part.

    Raises:
        ApiError: 400: it is not an image, is truncated or is too large.
    """
    return await asyncio.to_thread(_read, text, name, lambda file: read_picture(file, name, READ))


async def white(text: str, name: str) -> np.ndarray:
    """Decode a mask to bool ``[h, w]``; raises what ``opened`` raises."""
    return await asyncio.to_thread(_read, text, name, lambda file: read_mask(file, name))


def _encode(pixels: np.ndarray, output_format: str, quality: int | None, settings: Mapping[str, Any] | None) -> str:
    file, options = io.BytesIO(), {}
    if output_format == "png":
        options["pnginfo"] = info = PngImagePlugin.PngInfo()
        if settings is not None:
            info.add_text(PNG_KEY, json.dumps(settings))
    else:
        options["quality"] = 100 if quality is None else quality
    Image.fromarray(pixels).save(file, format=output_format.upper(), **options)
    return base64.b64encode(file.getvalue()).decode()


def _read(text: str, name: str, read: Callable[[BinaryIO], Decoded]) -> Decoded:
    if text.startswith("data:"):
        text = text.partition(",")[2]
    param = name.partition(".")[0]
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        message = f"{name} is not base64; send the bytes of a PNG, JPEG or WebP file in base64"
        raise ApiError(400, "invalid_image", message, param=param) from None
    try:
        return read(io.BytesIO(content))
    except RequestError as error:
        raise ApiError(400, "invalid_image", str(error), param=param) from None
