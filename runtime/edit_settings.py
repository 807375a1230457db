"""What an image was made from, as its PNG keeps it: packed bits of tokens and mask in base64."""

import base64
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from bitdance_edge.runtime.errors import RequestError
from bitdance_edge.runtime.request import Settings


def given_settings(batch: Settings, image: int) -> dict[str, Any]:
    """The settings that say what one image of a batch started from; none for one that was drawn from nothing."""
    given, edit = batch.given, batch.edit
    bits = given.tokens.shape[-1]
    if edit is None:
        if not (count := given.first_sampled):
            return {}
        tokens = given.tokens[image, :count].reshape(-1, bits)
        return {"prefix": _packed(tokens), "prefix_shape": list(tokens.shape)}
    tokens = given.tokens[image].reshape(-1, bits)
    redrawn = sorted(set(given.strengths[given.strengths > 0].tolist()))
    strength = redrawn[0] if edit.mask is not None and len(redrawn) == 1 else given.strengths.tolist()
    settings = {"init": _packed(tokens), "init_shape": list(tokens.shape), "strength": strength}
    if edit.mask is not None:
        mask = zlib.compress(np.packbits(edit.mask).tobytes())
        settings["mask"] = base64.b64encode(mask).decode()
        settings |= {"mask_shape": list(edit.mask.shape), "blend": edit.blend}
    return settings


def given_fields(settings: Mapping[str, Any], pixels: np.ndarray | None) -> dict[str, Any]:
    """The fields of a request that ``given_settings`` describes.

    Args:
        pixels: of the image with these settings, uint8 ``[H, W, 3]``. Where pixels outside a mask were kept, they are
            taken from it.

    Raises:
        RequestError: pixels were kept, and there are none.
        KeyError, ValueError, TypeError: the settings are incomplete.
    """
    if "prefix" in settings:
        return {"prefix": _unpacked(settings["prefix"], settings["prefix_shape"])}
    if "init" not in settings:
        return {}
    tokens = _unpacked(settings["init"], settings["init_shape"])
    fields = {"init": tokens, "strength": settings["strength"]}
    if "mask" in settings:
        height, width = settings["mask_shape"]
        packed = np.frombuffer(zlib.decompress(base64.b64decode(settings["mask"])), np.uint8)
        fields["mask"] = np.unpackbits(packed, count=height * width).reshape(height, width).astype(bool)
        fields["blend"] = settings["blend"]
        if settings["blend"]:
            if pixels is None:
                raise RequestError("this image keeps pixels of the one that it changes: pass its own pixels too")
            fields |= {"init": pixels, "init_tokens": tokens}
    return fields


def _packed(tokens: np.ndarray) -> str:
    return base64.b64encode(np.packbits(tokens > 0).tobytes()).decode()


def _unpacked(packed: str, shape: list[int]) -> np.ndarray:
    tokens, bits = shape
    values = np.frombuffer(base64.b64decode(packed), np.uint8)
    return np.unpackbits(values, count=tokens * bits).reshape(tokens, bits) * 2.0 - 1.0
