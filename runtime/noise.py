"""Noise that depends only on the image: not on its batch, the backend, the device or the version of numpy.

A counter-based generator (Philox) is keyed by the image's seed and a stream number, and its counter is set from patch
and step, so that any patch can be drawn again on its own. Normals are made here from the generator's raw integers:
numpy promises the bits of a bit generator across versions (NEP 19), not the normals made from them.
"""

from collections.abc import Sequence
from enum import IntEnum
from typing import Any

import numpy as np


class Stream(IntEnum):
    """Independent sequences of one image."""

    IMAGE = 0  # the conditional row, and both rows where they share their noise
    UNCONDITIONAL = 1  # the unconditional row where it has noise of its own
    DECODER = 2  # texture of decoders that draw some


AT_ONCE = 8192  # normals of an image in one call of numpy: for fewer, the calls cost more than their work


def normals(seed: int, stream: Stream, patch: int, steps: int, shape: tuple[int, ...]) -> np.ndarray:
    """Draw standard normals for one patch of an image, float32 ``[steps, *shape]``.

    Step k starts at a counter of its own, so that its values do not depend on the number of steps.
    """
    return _normals(seed, stream, range(patch, patch + 1), steps, shape)[0]


def _normals(seed: int, stream: Stream, patches: Sequence[int], steps: int, shape: tuple[int, ...]) -> np.ndarray:
    """The draws of several patches, float32 ``[patches, steps, *shape]``."""
    values = int(np.prod(shape))
    blocks = -(-values // 8)  # a Philox block is four 64-bit integers, an integer makes two normals
    bits = np.random.Philox(key=[seed, stream])
    start: Any = bits.state  # of a generator that has not drawn yet
    raw = np.empty((len(patches), steps, blocks * 4), np.uint64)
    for i, patch in enumerate(patches):
        start["state"]["counter"] = np.array([0, patch, 0, 0], np.uint64)
        bits.state = start
        raw[i] = bits.random_raw(steps * blocks * 4).reshape(steps, -1)
    first, second = (raw >> np.uint64(32)) + 1.0, (raw & np.uint64(0xFFFFFFFF)).astype(np.float64)
    radius = np.sqrt(-2 * np.log(first / 2.0**32))  # Box-Muller; first is never zero
    angle = second * (2 * np.pi / 2.0**32)
    pairs = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)
    drawn = pairs.reshape(len(patches), steps, -1)[..., :values]
    return drawn.reshape(len(patches), steps, *shape).astype(np.float32)


class ImageNoise:
    """The draws of a batch of images, each from its own seed.

    Args:
        start_only: for samplers without noise: all draws but the start are zero.
        ahead: the number of patches that will be asked for in order; small ones are drawn in groups.
    """

    def __init__(
        self,
        seeds: Sequence[int],
        steps: int,
        patch_shape: tuple[int, int],
        *,
        start_only: bool = False,
        ahead: int = 1,
    ) -> None:
        self.seeds, self.steps, self.patch_shape = seeds, steps, patch_shape
        self.drawn = 1 if start_only else steps + 1
        self.at_once = max(1, min(ahead, AT_ONCE // (self.drawn * int(np.prod(patch_shape)))))
        self._ahead: dict[int, np.ndarray] = {}

    def __call__(self, patch: int, rows_apart: bool) -> np.ndarray:
        """Draws of one patch, float32 ``[steps + 1, B, P, C]``: the start, then one a noisy step.

        With ``rows_apart`` the unconditional rows follow, with draws of their own: ``[steps + 1, 2B, P, C]``.
        """
        if rows_apart:
            return self._draw((Stream.IMAGE, Stream.UNCONDITIONAL), [patch])[0]
        if patch not in self._ahead:
            patches = range(patch, patch + self.at_once)
            self._ahead = dict(zip(patches, self._draw((Stream.IMAGE,), patches), strict=True))
        return self._ahead[patch]

    def _draw(self, streams: Sequence[Stream], patches: Sequence[int]) -> np.ndarray:
        """Draw several patches, float32 ``[patches, steps + 1, rows, P, C]``."""
        rows = [(seed, stream) for stream in streams for seed in self.seeds]
        noise = np.zeros((len(patches), self.steps + 1, len(rows), *self.patch_shape), np.float32)
        for row, (seed, stream) in enumerate(rows):
            noise[:, : self.drawn, row] = _normals(seed, stream, patches, self.drawn, self.patch_shape)
        return noise
