"""Encodes pixels as image files in base64 and decodes them, in threads, so that the event loop is free."""

import asyncio
import base64
import binascii
import ctypes
import io
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, BinaryIO, TypeVar

import numpy as np
from PIL import Image, PngImagePlugin

from bitdance_edge.errors import plain
from bitdance_edge.runtime import RequestError, Size, fit_pixels
from bitdance_edge.runtime.image import PNG_KEY
from bitdance_edge.runtime.mask import read_mask
from bitdance_edge.runtime.picture import FORMATS as MASKS
from bitdance_edge.runtime.picture import open_picture, read_picture
from bitdance_edge.serve.errors import ApiError

FORMATS = ("png", "jpeg", "webp")  # that are written
MOST_PIXELS = 16_000_000  # of an image to tokenise: some 250 MB while it is decoded
READ = ("PNG", "JPEG", "WebP")  # of an image to tokenise
Decoded = TypeVar("Decoded")


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


async def decoded(text: str, size: Size, fit: str = "cover") -> np.ndarray:
    """Decode an image file in base64 or a data URL to uint8 ``[H, W, 3]``, brought to ``size``.

    Raises:
        ApiError: 400: it is not an image, is truncated or is too large.
    """
    return await asyncio.to_thread(_fitted, text, size, fit)


def _fitted(text: str, size: Size, fit: str) -> np.ndarray:
    return _read(text, "image", lambda file: fit_pixels(read_picture(file, "image", READ), size, fit))


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
    return await asyncio.to_thread(_read, text, name, lambda file: read_mask(file, name), MASKS)


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


def _read(text: str, name: str, read: Callable[[BinaryIO], Decoded], formats: Sequence[str] = READ) -> Decoded:
    return read_file(file_of(text, name), name, read, formats)


def file_of(text: str, name: str) -> bytes:
    """The bytes of a file in base64, perhaps in lines as MIME and many tools write it, or as a data URL.

    Raises:
        ApiError: 400: it is not base64.
    """
    try:
        return base64.b64decode("".join(_without_scheme(text).split()), validate=True)
    except (binascii.Error, ValueError):
        message = f"{name} is not base64; send the bytes of a PNG, JPEG or WebP file in base64"
        raise ApiError(400, "invalid_image", message, param=name.partition(".")[0]) from None


def read_file(content: bytes, name: str, read: Callable[[BinaryIO], Decoded], formats: Sequence[str] = READ) -> Decoded:
    """Decode an image file by ``read``, in this thread.

    Args:
        name: of the field, for messages; errors are about its first part.
        formats: that are allowed.

    Raises:
        ApiError: 400: it is not an image, is truncated or is too large.
    """
    file, param = io.BytesIO(content), name.partition(".")[0]
    try:
        with open_picture(file, name, formats) as header:
            if header.width * header.height > MOST_PIXELS:
                shown = f"{header.width}x{header.height} pixels; this server takes {MOST_PIXELS:,} in total"
                raise ApiError(400, "invalid_image", f"{name} has {shown}: make it smaller", param=param)
        file.seek(0)
        return read(file)
    except RequestError as error:
        raise ApiError(400, "invalid_image", plain(error), param=param) from None
    finally:
        _return_memory()


def _without_scheme(text: str) -> str:
    return text.partition(",")[2] if text.startswith("data:") else text


def _return_memory() -> None:
    """Give the memory of large pictures back to the system; glibc would keep it for the thread's next ones."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # another C library has no malloc_trim
            ctypes.CDLL(None).malloc_trim(0)
