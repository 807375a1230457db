"""What requests with uploaded files change of an image: files into the change that the runtime makes."""

import json
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from bitdance_edge.errors import plain
from bitdance_edge.runtime import RequestError, Size
from bitdance_edge.runtime.image import PNG_KEY
from bitdance_edge.runtime.mask import place_mask, read_mask
from bitdance_edge.runtime.picture import open_picture, strips
from bitdance_edge.serve.errors import ApiError
from bitdance_edge.serve.pictures import READ, fitted, read_file
from bitdance_edge.serve.work import Change

VARIED = 0.7  # strength where all of an image is drawn anew: below 0.5 the prompt is not obeyed
OPAQUE = 128  # the least alpha that counts as opaque
ORIENTATION, SIDEWAYS = 0x0112, (5, 6, 7, 8)  # Exif 2.32, section 4.6.4
ReadMask = Callable[[BinaryIO], np.ndarray]


def uploaded_change(
    image: bytes,
    mask: bytes | None,
    size: Size,
    *,
    fit: str,
    strength: float | None,
    candidates: int = 1,
    name: str = "image",
    read: ReadMask | None = None,
) -> Change:
    """Decode an image and its mask, in this thread.

    Args:
        mask: None: where the image itself is transparent, if it is anywhere.
        strength: None: 1 with a mask, else VARIED.
        name: of the image, for messages.
        read: how the mask is read; None: ``transparent_or_white``.

    Raises:
        ApiError: 400: they cannot be read, or are of different sizes.
    """

    own, init = fitted(image, name, size, fit)
    redrawn = read_file(image, "image", _transparent) if mask is None and read is None else None
    if mask is not None:
        redrawn = read_file(mask, "mask", read or transparent_or_white)
    if redrawn is not None:
        try:
            redrawn = place_mask(redrawn, own, size, fit, "mask")
        except RequestError as error:
            raise ApiError(400, "invalid_value", plain(error), param="mask") from None
    return Change(
        init=init,
        mask=redrawn,
        strength=VARIED if strength is None and redrawn is None else strength,
        candidates=candidates,
        blend=True,
    )


def size_of(content: bytes, name: str) -> Size:
    """The size of a picture, upright. Raises: ApiError 400: it cannot be read."""

    def read(file: BinaryIO) -> Size:
        with open_picture(file, name, READ) as image:
            turned = image.getexif().get(ORIENTATION, 1) in SIDEWAYS
            return (
                Size(width=image.height, height=image.width) if turned else Size(width=image.width, height=image.height)
            )

    return read_file(content, name, read)


def transparent_or_white(file: BinaryIO) -> np.ndarray:
    """Read a mask as OpenAI's API has it, transparent where to redraw, or a gray one, white there: bool ``[h, w]``."""
    redrawn = _transparent(file)
    file.seek(0)
    return read_mask(file, "mask") if redrawn is None else redrawn


def opaque_and_light(file: BinaryIO, inverted: bool) -> np.ndarray:
    """Read a mask as the web UI has it: white where to redraw; of one with transparency, what is opaque."""
    clear = _transparent(file)
    file.seek(0)
    with open_picture(file, "mask") as image:
        redrawn = ~clear if clear is not None else np.asarray(image.convert("L")) >= OPAQUE
    return ~redrawn if inverted else redrawn


def subject_of(content: bytes) -> str | None:
    """What a PNG made here shows, by its own settings: the prompt, or the id of the class; None: it does not say."""

    def read(file: BinaryIO) -> str | None:
        with open_picture(file, "image", READ) as image:
            text = image.info.get(PNG_KEY)
        try:
            settings = json.loads(text or "")
            return str(settings["prompt"] if "prompt" in settings else settings["class"])
        except (ValueError, KeyError, TypeError):
            return None

    return read_file(content, "image", read)


def _transparent(file: BinaryIO) -> np.ndarray | None:
    """Where a picture is transparent, bool ``[h, w]``; None: nowhere."""
    with open_picture(file, "image") as image:
        if not image.has_transparency_data:
            return None
        _decode(image)
        with suppress(SyntaxError, struct.error):  # Pillow's for Exif that is no TIFF structure
            ImageOps.exif_transpose(image, in_place=True)
        clear = np.empty((image.height, image.width), bool)
        for top, strip in strips(image):
            clear[top : top + strip.height] = np.asarray(strip.convert("RGBA").getchannel("A")) < OPAQUE
    return clear if clear.any() else None


def _decode(image: Image.Image) -> None:
    """Raises: RequestError: the file is truncated or damaged."""
    try:
        image.load()
    except Exception as error:  # what Pillow raises for damaged files shares no base class
        raise RequestError(f"the image cannot be decoded ({error}); it may be truncated or damaged") from None
