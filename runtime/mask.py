"""Masks: gray pictures that say where an image is redrawn (white) and where it is kept (black)."""

from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageChops

from bitdance_edge.runtime.bundle.size import Size
from bitdance_edge.runtime.errors import RequestError
from bitdance_edge.runtime.fit import fit_mask
from bitdance_edge.runtime.picture import MOST_BYTES, decoded_picture, strips
from bitdance_edge.runtime.reading import open_regular

WHITE = 128  # the darkest gray that counts as white
GRAY, PERHAPS_GRAY = ("1", "L"), ("RGB", "RGBA", "LA", "P", "PA")
REMEDY = "a mask is gray: white where to redraw, black where to keep. Save it in grayscale without transparency"


def load_mask(path: str | Path) -> np.ndarray:
    """Read a mask from an image file, bool ``[h, w]``; raises what ``read_mask`` raises."""
    with open_regular(path, "mask", MOST_BYTES) as file:
        return read_mask(file, str(path))


def read_mask(file: BinaryIO, name: str) -> np.ndarray:
    """Decode a mask, bool ``[h, w]``: True where it is white.

    Args:
        name: of the mask, for messages.

    Raises:
        RequestError: it cannot be read, has colors or transparent pixels.
    """
    with decoded_picture(file, name) as image:
        if image.mode not in (*GRAY, *PERHAPS_GRAY):
            raise RequestError(f"{name} is a picture of mode {image.mode}; {REMEDY}")
        return _white(image, name)


def place_mask(mask: np.ndarray, picture: Size | None, size: Size, fit: str, name: str) -> np.ndarray:
    """Bring a mask to the size of an image: one of its picture's size as that is brought, one of this size as it is.

    Args:
        picture: the size of the picture that the mask is for, before it was fitted; None: it has none.

    Raises:
        RequestError: the mask has neither size.
    """
    found = Size(width=mask.shape[1], height=mask.shape[0])
    if found == picture:
        return fit_mask(mask, size, fit)
    if found != size:
        either = str(size) if picture in (None, size) else f"{picture}, the size of its picture, or {size}"
        raise RequestError(f"{name} is {found}; a mask must be {either} pixels (WIDTHxHEIGHT)")
    return mask


def _white(image: Image.Image, name: str) -> np.ndarray:
    if image.mode in GRAY and not image.has_transparency_data:
        return np.asarray(image.convert("L")) >= WHITE
    white = np.empty((image.height, image.width), bool)
    for top, strip in strips(image):
        red, green, blue, alpha = strip.convert("RGBA").split()
        if alpha.getextrema() != (255, 255):
            raise RequestError(f"{name} is a picture of mode {image.mode} with transparent pixels; {REMEDY}")
        if any(ImageChops.difference(red, other).getbbox() for other in (green, blue)):
            raise RequestError(f"{name} is a picture of mode {image.mode} with colors; {REMEDY}")
        white[top : top + strip.height] = np.asarray(red) >= WHITE
    return white
