"""Brings pictures of any size to that of an image: cropped, padded or stretched. Knows pixels, nothing of files."""

import numpy as np
from PIL import Image, ImageOps

from bitdance_edge.runtime.bundle.size import Size
from bitdance_edge.runtime.values import one_of

FITS = ("cover", "contain", "stretch")


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
    image = image if image.mode == "RGB" else image.convert("RGB")  # which would copy it
    return np.asarray(_fitted(image, size, fit, Image.Resampling.LANCZOS))


def fit_mask(mask: np.ndarray, size: Size, fit: str = "cover") -> np.ndarray:
    """Bring a mask bool ``[h, w]`` to a size as ``fit_pixels`` brings its picture; what is beside it is False.

    A pixel is True if any of those that it replaces is, so that thin lines are not lost.
    """
    image = Image.fromarray(mask).convert("F")  # whose means are exact enough to be above 0
    return np.asarray(_fitted(image, size, fit, Image.Resampling.BOX)) > 0


def _fitted(image: Image.Image, size: Size, fit: str, method: Image.Resampling) -> Image.Image:
    one_of("fit", fit, FITS)
    shape = (size.width, size.height)
    if fit == "stretch":
        return image.resize(shape, method)
    if fit == "contain":
        scale = min(size.width / image.width, size.height / image.height)
        # Of a long thin picture one side would be rounded to 0.
        inner = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        return ImageOps.pad(image.resize(inner, method), shape, method)
    scale = min(image.width / size.width, image.height / size.height)
    across, down = min(image.width, size.width * scale), min(image.height, size.height * scale)  # products are rounded
    left, top = (image.width - across) / 2, (image.height - down) / 2
    return image.resize(shape, method, box=(left, top, left + across, top + down))
