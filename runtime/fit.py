"""Brings pictures and masks of any size to that of an image: cropped, padded or stretched."""

import numpy as np
from PIL import Image, ImageOps

from bitdance_edge.runtime.bundle.size import Size
from bitdance_edge.runtime.errors import RequestError

FITS = ("cover", "contain", "stretch")
WHITE = 128  # grays of a mask from which it is white


def fit_pixels(picture: Image.Image | np.ndarray, size: Size, fit: str = "cover") -> np.ndarray:
    """Bring a picture to a size: uint8 ``[H, W, 3]``.

    Args:
        picture: Pillow's, or uint8 ``[h, w, 3]``.
        fit: "cover": the largest centred part of that shape; "contain": all of it, with black beside it; "stretch": all
            of it, distorted.

    Raises:
        RequestError: ``fit`` is none of these.
    """
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    return np.asarray(_fitted(image.convert("RGB"), size, fit, Image.Resampling.LANCZOS))


def fit_mask(mask: np.ndarray, size: Size, fit: str = "cover") -> np.ndarray:
    """Bring a mask bool ``[h, w]`` to a size as ``fit_pixels`` brings its picture; what is beside it is False."""
    image = Image.fromarray(mask.astype(np.uint8))
    return np.asarray(_fitted(image, size, fit, Image.Resampling.NEAREST)).astype(bool)


def mask_of(image: Image.Image, name: str) -> np.ndarray:
    """Read a mask, bool ``[h, w]``: white is True.

    Args:
        name: of the mask, for messages.

    Raises:
        RequestError: it is not black and white or gray, or has transparent pixels.
    """
    if image.mode not in ("1", "L"):
        what = f"{name} is a picture of mode {image.mode}"
        todo = "a mask is gray: white where to redraw, black where to keep. Save it in grayscale without transparency"
        if image.mode not in ("RGB", "RGBA", "LA", "P", "PA"):
            raise RequestError(f"{what}; {todo}")
        red, green, blue, alpha = np.moveaxis(np.asarray(image.convert("RGBA")), -1, 0)
        if alpha.min() < 255:
            raise RequestError(f"{what} with transparent pixels; {todo}")
        if (red != green).any() or (red != blue).any():
            raise RequestError(f"{what} with colors; {todo}")
        return red >= WHITE
    return np.asarray(image.convert("L")) >= WHITE


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


def _fitted(image: Image.Image, size: Size, fit: str, method: Image.Resampling) -> Image.Image:
    if fit not in FITS:
        raise RequestError(f"fit is {fit!r}; it must be one of {', '.join(FITS)}")
    shape = (size.width, size.height)
    if fit == "stretch":
        return image.resize(shape, method)
    if fit == "contain":
        return ImageOps.pad(image, shape, method)
    scale = min(image.width / size.width, image.height / size.height)
    across, down = min(image.width, size.width * scale), min(image.height, size.height * scale)  # products are rounded
    left, top = (image.width - across) / 2, (image.height - down) / 2
    return image.resize(shape, method, box=(left, top, left + across, top + down))
