"""What an image was made from, as its PNG keeps it: packed bits of tokens and mask in base64."""

import base64
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from bitdance_edge.runtime.errors import RequestError
from bitdance_edge.runtime.request import Settings
from bitdance_edge.runtime.values import whole

MOST_BITS = 2**26  # of tokens or a mask that are read: a byte each while they are unpacked


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
        RequestError: the settings are damaged, or pixels were kept, and there are none.
    """
    if "prefix" in settings:
        return {"prefix": _unpacked(settings, "prefix")}
    if "init" not in settings:
        return {}
    tokens = _unpacked(settings, "init")
    fields = {"init": tokens, "strength": settings.get("strength")}
    if "mask" in settings:
        fields |= {"mask": _mask(settings), "blend": settings.get("blend")}
        if settings.get("blend") is True:
            if pixels is None:
                raise RequestError("this image keeps pixels of the one that it changes: pass its own pixels too")
            fields |= {"init": pixels, "init_tokens": tokens}
    return fields


def _packed(tokens: np.ndarray) -> str:
    return base64.b64encode(np.packbits(tokens > 0).tobytes()).decode()


def _unpacked(settings: Mapping[str, Any], name: str) -> np.ndarray:
    """The tokens ``[K, C]`` of -1 and +1 that settings hold as packed bits in base64."""
    with _damaged(name):
        packed = np.frombuffer(base64.b64decode(settings[name], validate=True), np.uint8)
        return _bits(packed, settings, name) * 2.0 - 1.0


def _mask(settings: Mapping[str, Any]) -> np.ndarray:
    """The mask bool ``[H, W]`` that settings hold as compressed bits in base64."""
    with _damaged("mask"):
        unpacker = zlib.decompressobj()
        packed = unpacker.decompress(base64.b64decode(settings["mask"], validate=True), MOST_BITS // 8)
        return _bits(np.frombuffer(packed, np.uint8), settings, "mask").view(bool)


def _bits(packed: np.ndarray, settings: Mapping[str, Any], name: str) -> np.ndarray:
    """Packed bits as uint8 in the shape that settings give."""
    rows, columns = (whole(f"{name}_shape", side, 1, MOST_BITS) for side in settings[f"{name}_shape"])
    if len(packed) != -(-rows * columns // 8):
        raise RequestError(f"the {name} in the bitdance settings does not have its shape; the file was edited")
    return np.unpackbits(packed, count=rows * columns).reshape(rows, columns)


@contextmanager
def _damaged(name: str) -> Iterator[None]:
    try:
        yield
    except (KeyError, TypeError, ValueError, zlib.error):
        raise RequestError(f"the {name} in the bitdance settings cannot be read; the file was edited") from None
