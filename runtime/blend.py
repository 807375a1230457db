"""Joins what was drawn inside a mask to the picture around it, without a seam.

The decoder's norms are over the whole image, so pixels far from a change change too, by a few levels. Outside the mask
the original is kept; inside, the drawing is moved by a membrane: the smoothest offset that takes it to the original on
the border (the harmonic one; Poisson image editing, Perez et al. 2003, section 3, in its correction form).
"""

import numpy as np
from PIL import Image

# Sweeps over each level of the pyramid, which starts from the solution of the coarser one: many over small levels,
# where they cost nothing and reach far.
MOST_SWEEPS, FEWEST_SWEEPS, SWEPT = 60, 10, 8000  # SWEPT: sweeps times the level's longer side
SMALLEST = 8  # longer side in pixels of the coarsest level
OVER_RELAXATION = 1.7


def blended(drawn: np.ndarray, original: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Join ``drawn`` to ``original`` at the border of ``inside``.

    Args:
        drawn, original: uint8 ``[H, W, 3]``.
        inside: bool ``[H, W]``, where the drawing is to be seen; at least one pixel is not.

    Returns:
        uint8 ``[H, W, 3]``, outside exactly the original.
    """
    rows, columns = (np.flatnonzero(inside.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return original.copy()
    # The membrane depends on the pixels inside and their neighbours only.
    near = tuple(slice(max(0, line[0] - 1), line[-1] + 2) for line in (rows, columns))
    difference = original[near].astype(np.float32) - drawn[near]
    moved = drawn[near] + _membrane(difference, inside[near])
    joined = original.copy()
    joined[near][inside[near]] = np.clip(np.rint(moved), 0, 255).astype(np.uint8)[inside[near]]
    return joined


def _membrane(known: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Solve Laplace's equation inside, with the values of ``known`` float32 ``[H, W, 3]`` outside, from coarse to fine.

    The edge of the array is free: there the offset goes on level.
    """
    guess = np.where(inside[..., None], 0, known)
    if max(inside.shape) > SMALLEST and not inside.all():
        weight = _blocks(~inside[..., None] * np.ones(1, np.float32))
        # A block with any known pixel is known, so that a thin border is not lost.
        coarser = _membrane(_blocks(guess) / np.maximum(weight, 1), weight[..., 0] == 0)
        guess = np.where(inside[..., None], _resized(coarser, *inside.shape), known)
    return _relaxed(guess.astype(np.float32), inside)


def _blocks(values: np.ndarray) -> np.ndarray:
    """Add up blocks of 2x2 pixels: ``[H, W, C]`` to ``[ceil(H / 2), ceil(W / 2), C]``."""
    height, width, channels = values.shape
    even = np.pad(values, ((0, height % 2), (0, width % 2), (0, 0)))
    return even.reshape(-(-height // 2), 2, -(-width // 2), 2, channels).sum(axis=(1, 3))


def _relaxed(values: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Sweep over the pixels inside like over a chessboard: each moves towards the mean of its four neighbours."""
    white = np.indices(inside.shape).sum(axis=0) % 2 == 0
    for _ in range(min(MOST_SWEEPS, max(FEWEST_SWEEPS, SWEPT // max(inside.shape)))):
        for color in (inside & white, inside & ~white):
            around = np.pad(values, ((1, 1), (1, 1), (0, 0)), mode="edge")
            mean = (around[:-2, 1:-1] + around[2:, 1:-1] + around[1:-1, :-2] + around[1:-1, 2:]) / 4
            values = values + OVER_RELAXATION * np.where(color[..., None], mean - values, 0)
    return values


def _resized(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize ``[h, w, C]`` to another height and width, float32."""
    channels = (Image.fromarray(values[..., c].astype(np.float32)) for c in range(values.shape[2]))
    method = Image.Resampling.BILINEAR
    return np.stack([np.asarray(channel.resize((width, height), method)) for channel in channels], axis=-1)
