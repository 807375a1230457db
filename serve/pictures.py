"""Encodes pixels as image files in base64 and decodes them, in threads, so that the event loop is free."""

import asyncio
import base64
import ctypes
import io
import json
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, BinaryIO, TypeVar

import numpy as np
from PIL import Image, PngImagePlugin

from bitdance_edge.errors import plain
from bitdance_edge.runtime import RequestError, Size, fit_pixels
from bitdance_edge.runtime.image import PNG_KEY
from bitdance_edge.runtime.picture import read_picture
from bitdance_edge.serve.errors import ApiError

FORMATS = ("png", "jpeg", "webp")  # that are written
READ = ("PNG", "JPEG", "WebP")  # that are read, of images; masks are of any format that the runtime reads
WHITESPACE = b" \t\r\n\v\f"
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
    return (await asyncio.to_thread(lambda: fitted(file_of(text, "image"), "image", size, fit)))[1]


def fitted(content: bytes, name: str, size: Size, fit: str) -> tuple[Size, np.ndarray]:
    """Decode an image file to its own size, and to uint8 ``[H, W, 3]`` brought to ``size``, in this thread.

    Args:
        name: of the field, for messages; errors are about its first part.

    Raises:
        ApiError: 400: it is not an image, is truncated or is too large.
    """

    def read(file: BinaryIO) -> tuple[Size, np.ndarray]:
        picture = read_picture(file, name, READ)
        return Size(width=picture.width, height=picture.height), fit_pixels(picture, size, fit)

    return read_file(content, name, read)


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


def file_of(text: str, name: str) -> bytes:
    """The bytes of a file in base64, perhaps in lines as MIME and many tools write it, or as a data URL.

    Raises:
        ApiError: 400: it is not base64.
    """
    try:
        return base64.b64decode(_without_scheme(text).encode("ascii").translate(None, WHITESPACE), validate=True)
    except ValueError:  # of base64, and of characters outside ASCII
        message = f"{name} is not base64; send the bytes of a PNG, JPEG or WebP file in base64"
        raise ApiError(400, "invalid_image", message, param=name.partition(".")[0]) from None


def read_file(content: bytes, name: str, read: Callable[[BinaryIO], Decoded]) -> Decoded:
    """Decode an image file by ``read``, in this thread.

    Args:
        name: of the field, for messages; errors are about its first part.

    Raises:
        ApiError: 400: it is not an image, is truncated or is too large.
    """
    try:
        return read(io.BytesIO(content))
    except RequestError as error:
        message = plain(error)  # and nothing more of it: its frames hold the picture
    finally:
        return_memory()
    raise ApiError(400, "invalid_image", message, param=name.partition(".")[0])


def _without_scheme(text: str) -> str:
    return text.partition(",")[2] if text.startswith("data:") else text


def return_memory() -> None:
    """Give the memory of large pictures back to the system; glibc would keep it for the thread's next ones."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # another C library has no malloc_trim
            ctypes.CDLL(None).malloc_trim(0)
