"""Encodes pixels as image files in base64 and decodes them, in threads, so that the event loop is free."""

import asyncio
import base64
import binascii
import ctypes
import io
import json
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from bitdance_edge.runtime import RequestError, Size
from bitdance_edge.runtime.image import PNG_KEY
from bitdance_edge.runtime.picture import fitted_pixels, open_picture, read_picture
from bitdance_edge.serve.errors import ApiError

FORMATS = ("png", "jpeg", "webp")  # that are written
MOST_PIXELS = 16_000_000  # of an image to tokenise: some 250 MB while it is decoded
READ = ("PNG", "JPEG", "WebP")  # of an image to tokenise


async def encoded(
    pixels: np.ndarray,
    output_format: str = "png",
    quality: int | None = None,
    settings: Mapping[str, Any] | None = None,
    parameters: str | None = None,
) -> str:
    """Encode uint8 ``[H, W, 3]`` as an image file in base64.

    A PNG carries ``settings``, which reproduce it, and ``parameters``, a text for web UIs.
    """
    texts = {} if settings is None else {PNG_KEY: json.dumps(settings)}
    if parameters is not None:
        texts["parameters"] = parameters
    return await asyncio.to_thread(_encode, pixels, output_format, quality, texts)


async def decoded(text: str, size: Size) -> np.ndarray:
    """Decode an image file in base64 or a data URL to uint8 ``[H, W, 3]``, cropped and resized to ``size``.

    Raises:
        ApiError: 400: it is not an image, is truncated or is too large.
    """
    return await asyncio.to_thread(_decode, text, size)


def _encode(pixels: np.ndarray, output_format: str, quality: int | None, texts: Mapping[str, str]) -> str:
    file, options = io.BytesIO(), {}
    if output_format == "png":
        options["pnginfo"] = info = PngImagePlugin.PngInfo()
        for name, text in texts.items():
            info.add_text(name, text)
    else:
        options["quality"] = 100 if quality is None else quality
    Image.fromarray(pixels).save(file, format=output_format.upper(), **options)
    return base64.b64encode(file.getvalue()).decode()


def _decode(text: str, size: Size) -> np.ndarray:
    try:
        # Without the line breaks that MIME and many tools put in.
        file = io.BytesIO(base64.b64decode("".join(_without_scheme(text).split()), validate=True))
    except (binascii.Error, ValueError):
        raise _invalid("image is not base64; send the bytes of a PNG, JPEG or WebP file in base64") from None
    try:
        with open_picture(file, "image", READ) as header:
            if header.width * header.height > MOST_PIXELS:
                shown = f"{header.width}x{header.height} pixels; this server takes {MOST_PIXELS:,} in total"
                raise _invalid(f"image has {shown}: make it smaller")
        file.seek(0)
        return fitted_pixels(read_picture(file, "image", READ), size.height, size.width)
    except RequestError as error:
        raise _invalid(str(error)) from None
    finally:
        _return_memory()


def _without_scheme(text: str) -> str:
    return text.partition(",")[2] if text.startswith("data:") else text


def _return_memory() -> None:
    """Give the memory of large pictures back to the system; glibc would keep it for the thread's next ones."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # another C library has no malloc_trim
            ctypes.CDLL(None).malloc_trim(0)


def _invalid(message: str) -> ApiError:
    return ApiError(400, "invalid_image", message, param="image")
