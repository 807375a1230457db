"""What requests with uploaded files change of an image: files into the change that the runtime makes."""

from collections.abc import Callable
from typing import BinaryIO

import numpy as np
from PIL import Image

from bitdance_edge.errors import plain
from bitdance_edge.runtime import RequestError, Size
from bitdance_edge.runtime.image import PNG_KEY, parsed_settings
from bitdance_edge.runtime.mask import place_mask, read_mask
from bitdance_edge.runtime.picture import decoded_picture, open_picture, strips
from bitdance_edge.serve.errors import ApiError
from bitdance_edge.serve.pictures import READ, fitted, read_file, return_memory
from bitdance_edge.serve.work import Change

VARIED = 0.7  # strength where all of an image is drawn anew: below 0.5 the prompt is not obeyed
OPAQUE = 128  # the least alpha that counts as opaque
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
    redrawn = read_file(image, "image", transparent) if mask is None and read is None else None
    if mask is not None:
        redrawn = read_file(mask, "mask", read or transparent_or_white)
    if redrawn is not None:
        try:
            redrawn = place_mask(redrawn, own, size, fit, "mask")
        except RequestError as error:
            raise ApiError(400, "invalid_value", plain(error), param="mask") from None
        finally:
            return_memory()
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
        with decoded_picture(file, name, READ) as image:
            return Size(width=image.width, height=image.height)

    return read_file(content, name, read)


def transparent_or_white(file: BinaryIO) -> np.ndarray:
    """Read a mask as OpenAI's API has it, transparent where to redraw, or a gray one, white there: bool ``[h, w]``."""
    redrawn = transparent(file, "mask")
    file.seek(0)
    return read_mask(file, "mask") if redrawn is None else redrawn


def opaque_and_light(file: BinaryIO, inverted: bool) -> np.ndarray:
    """Read a mask as the web UI has it: white where to redraw; of one with transparency, what is opaque."""
    with decoded_picture(file, "mask") as image:
        clear = _clear(image)
        redrawn = ~clear if clear is not None else _at_least(OPAQUE, image, "L", "L")
    return ~redrawn if inverted else redrawn


def subject_of(content: bytes) -> str | None:
    """What a PNG made here shows, by its own settings: the prompt, or the id of the class; None: it does not say."""

    def read(file: BinaryIO) -> str | None:
        with open_picture(file, "image", READ) as image:
            settings = parsed_settings(image.info.get(PNG_KEY) or "") or {}
        subject = settings.get("prompt", settings.get("class"))
        return str(subject) if isinstance(subject, str | int) else None

    return read_file(content, "image", read)


def transparent(file: BinaryIO, name: str = "image") -> np.ndarray | None:
    """Where a picture is transparent, bool ``[h, w]``; None: nowhere."""
    with decoded_picture(file, name) as image:
        return _clear(image)


def _clear(image: Image.Image) -> np.ndarray | None:
    if not image.has_transparency_data:
        return None
    clear = ~_at_least(OPAQUE, image, "RGBA", "A")
    return clear if clear.any() else None


def _at_least(level: int, image: Image.Image, mode: str, channel: str) -> np.ndarray:
    """Where a channel of a picture has at least this level in another mode, bool ``[h, w]``."""
    reached = np.empty((image.height, image.width), bool)
    for top, strip in strips(image):
        reached[top : top + strip.height] = np.asarray(strip.convert(mode).getchannel(channel)) >= level
    return reached
