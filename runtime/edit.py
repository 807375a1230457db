"""What a request changes of an image: checked, and turned into what the loop is given."""

import math
from dataclasses import dataclass, replace

import numpy as np

from bitdance_edge.runtime.bundle.manifest import Bundle
from bitdance_edge.runtime.bundle.specs import ImageSize, ModelSpec
from bitdance_edge.runtime.bundle.stage_names import StageName
from bitdance_edge.runtime.errors import RequestError
from bitdance_edge.runtime.given import GivenTokens
from bitdance_edge.runtime.preview import sequence_to_grid
from bitdance_edge.runtime.tokens import checked_tokens
from bitdance_edge.runtime.values import as_array, shown


@dataclass(frozen=True, kw_only=True)
class Edit:
    """The image that a request changes, and where.

    Attributes:
        pixels: uint8 ``[1 or images, H, W, 3]``; None where only its tokens are given.
        encode: whether its tokens are still to be made of its pixels.
        mask: True where it is redrawn, bool ``[H, W]``; None: everywhere.
        blend: keep the pixels outside the mask, and join the drawing to them.
    """

    pixels: np.ndarray | None
    encode: bool
    mask: np.ndarray | None
    blend: bool

    def of_images(self, images: slice) -> "Edit":
        """The same of some of the images."""
        if self.pixels is None or len(self.pixels) == 1:
            return self
        return replace(self, pixels=self.pixels[images])

    def original(self, image: int) -> np.ndarray:
        """The pixels of an image as they were, uint8 ``[H, W, 3]``."""
        assert self.pixels is not None, "they are decoded before they are asked for"
        return self.pixels[image if len(self.pixels) > 1 else 0]


def resolve_edit(
    init: object,
    init_tokens: object,
    strength: object,
    mask: object,
    blend: bool,
    *,
    images: int,
    bundle: Bundle,
    size: ImageSize,
) -> tuple[Edit, GivenTokens]:
    """Check the fields of ``Request`` by these names, for a number of images of one size.

    Returns:
        The edit, and what the loop is given; tokens that are still to be encoded are zero there.

    Raises:
        RequestError: names the value, what is allowed, and what to do.
    """
    model, patch = bundle.model, (size.patches, bundle.model.tokens_per_step)
    picture = as_array("init", init, "as an array; its rows may have different lengths")
    if picture.dtype == np.uint8 and not _is_picture(picture):
        raise RequestError(_expected("init", picture, images, size, model))
    pixels = _pixels(picture, images, size) if _is_picture(picture) else None
    tokens = init_tokens if pixels is not None else init
    if tokens is None and StageName.ENCODER not in bundle.stages:
        raise RequestError(f"{bundle.name} has no encoder, so init must be tokens; export it again with its encoder")
    if mask is None and strength is None:
        raise RequestError(
            "init is given without mask or strength: give a mask of what to redraw, or a strength such as 0.7 to vary "
            "all of it"
        )
    strengths = _strengths(1.0 if strength is None else strength, size)
    redrawn, white = np.ones(patch, bool), None
    if mask is not None:
        white = _mask(as_array("mask", mask, "as an array; its rows may have different lengths"), size, model)
        cells = white.reshape(size.grid_height, model.pixels_per_token, size.grid_width, -1).any(axis=(1, 3))
        redrawn = cells.ravel()[_raster_places(size, model)].reshape(patch)
    strengths = np.where(redrawn.any(axis=1), strengths, 0.0)
    given = GivenTokens(
        tokens=np.broadcast_to(
            np.float32(0) if tokens is None else given_tokens("init", tokens, images, bundle, size),
            (images, *patch, model.bits),
        ),
        strengths=strengths,
        held=~redrawn & (strengths > 0)[:, None],
    )
    edit = Edit(pixels=pixels, encode=tokens is None, mask=white, blend=blend and white is not None)
    return edit, given


def given_tokens(name: str, tokens: object, images: int, bundle: Bundle, size: ImageSize) -> np.ndarray:
    """Check the tokens of whole images, ``[h*w, C]`` or ``[images, h*w, C]``: float32 ``[images, S, P, C]``.

    Raises:
        RequestError: they are of another shape, or not of -1 and +1.
    """
    model, tokens = bundle.model, checked_tokens(name, tokens)
    shaped = tokens[None] if tokens.ndim == 2 else tokens
    if shaped.shape[0] not in (1, images) or shaped.shape[1:] != (size.tokens, model.bits):
        raise RequestError(_expected(name, tokens, images, size, model))
    whole = np.broadcast_to(shaped, (images, *shaped.shape[1:])).astype(np.float32)
    return whole.reshape(images, size.patches, model.tokens_per_step, model.bits)


def _expected(name: str, found: np.ndarray, images: int, size: ImageSize, model: ModelSpec) -> str:
    return (
        f"{name} is {found.dtype} {list(found.shape)}; it must be pixels, uint8 [{size.height}, {size.width}, 3] "
        f"(fit_pixels makes them of any picture), or the tokens of an image of {size}, [{size.tokens}, {model.bits}]; "
        f"several of either for {images} images, one each"
    )


def _is_picture(init: np.ndarray) -> bool:
    return init.dtype == np.uint8 and init.ndim in (3, 4) and init.shape[-1] == 3


def _pixels(init: np.ndarray, images: int, size: ImageSize) -> np.ndarray:
    pixels = init[None] if init.ndim == 3 else init
    if pixels.shape[1:3] != (size.height, size.width):
        raise RequestError(
            f"init is a picture of {pixels.shape[2]}x{pixels.shape[1]} pixels, and images of {size} are asked for: "
            "fit it with fit_pixels (--fit on the command line), or ask for its size"
        )
    if len(pixels) not in (1, images):
        raise RequestError(f"init has {len(pixels)} pictures for {images} images; give one, or one each")
    return pixels


def _strengths(strength: object, size: ImageSize) -> np.ndarray:
    """One number for all patches, or one a patch, by rows of patches: float64 ``[S]``."""
    values = as_array("strength", strength, "as numbers from 0 to 1; give one, or one a patch")
    if values.dtype.kind not in "iuf":
        raise RequestError(f"strength is {shown(strength)}; it must be a number from 0 to 1, or one a patch")
    values = values.astype(np.float64)
    if values.size not in (1, size.patches):
        raise RequestError(
            f"strength has {values.size} values; give one number, or one for each of the {size.patches} patches "
            f"([{size.patches_down}, {size.patches_across}] for {size})"
        )
    if not (np.isfinite(values).all() and 0 <= values.min() <= values.max() <= 1):
        bad = next(float(v) for v in values.ravel() if not (math.isfinite(v) and 0 <= v <= 1))
        raise RequestError(f"strength is {bad!r}; it must be from 0 (the image itself) to 1 (drawn from nothing)")
    return np.broadcast_to(values.ravel(), (size.patches,))


def _mask(mask: np.ndarray, size: ImageSize, model: ModelSpec) -> np.ndarray:
    """A mask of pixels ``[H, W]`` or of tokens ``[h, w]``: bool ``[H, W]``."""
    if mask.dtype != bool:
        raise RequestError(
            f"mask is {mask.dtype} {list(mask.shape)}; it must be bool, True where to redraw: image > 127"
        )
    if mask.shape == (size.grid_height, size.grid_width):
        mask = np.kron(mask, np.ones((model.pixels_per_token, model.pixels_per_token), bool))
    if mask.shape != (size.height, size.width):
        raise RequestError(
            f"mask is {list(mask.shape)}; it must have the image's {size.height} rows of {size.width} pixels, or its "
            f"{size.grid_height} rows of {size.grid_width} tokens"
        )
    if not mask.any():
        raise RequestError("mask is False (black) everywhere, so nothing would be redrawn: paint white what to redraw")
    if mask.all():
        raise RequestError(
            "mask is True (white) everywhere, so nothing would be kept: omit the mask, and give a strength below 1 to "
            "vary the whole image, or no init to draw a new one"
        )
    return mask


def _raster_places(size: ImageSize, model: ModelSpec) -> np.ndarray:
    """Where each token of the sequence lies in raster order, int64 ``[h*w]``."""
    places = sequence_to_grid(np.arange(size.tokens), size.grid_height, size.grid_width, model.patch_side)
    return np.argsort(places.ravel())
