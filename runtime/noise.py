"""Noise that depends on the image alone: not on its batch, the backend, the device or the version of numpy.

A counter-based generator (Philox) is keyed by the image's seed and a stream number, and its counter is set from patch
and step, so that any patch can be drawn again by itself. Normals are made here from the generator's raw integers:
numpy promises the bits of a bit generator across versions (NEP 19), not the normals made from them.
"""

from collections.abc import Sequence
from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """Independent sequences of one image."""

    IMAGE = 0  # the conditional row, and both rows where they share their noise
    UNCONDITIONAL = 1  # the unconditional row where it is sampled apart
    DECODER = 2  # texture of decoders that draw some


def normals(seed: int, stream: Stream, patch: int, steps: int, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal draws of one image's patch, float32 ``[steps, *shape]``.

    Step k starts at a counter of its own: it is the same whether one step is drawn or a hundred.
    """
    values = int(np.prod(shape))
    blocks = -(-values // 8)  # a Philox block is four 64-bit integers, an integer makes two normals
    bits = np.random.Philox(key=[seed, stream], counter=[0, patch, 0, 0])
    raw = bits.random_raw(steps * blocks * 4).reshape(steps, -1)
    first, second = (raw >> np.uint64(32)) + 1.0, (raw & np.uint64(0xFFFFFFFF)).astype(np.float64)
    radius = np.sqrt(-2 * np.log(first / 2.0**32))  # Box-Muller; first is never zero
    angle = second * (2 * np.pi / 2.0**32)
    pairs = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)
    return pairs.reshape(steps, -1)[:, :values].reshape(steps, *shape).astype(np.float32)


class ImageNoise:
    """The draws of a batch of images, each from its own seed."""

    def __init__(
        self, seeds: Sequence[int], steps: int, patch_shape: tuple[int, int], *, start_only: bool = False
    ) -> None:
        """``start_only``: for samplers without noise, whose steps get zeros."""
        self.seeds, self.steps, self.patch_shape, self.start_only = seeds, steps, patch_shape, start_only

    def __call__(self, patch: int, rows_apart: bool) -> np.ndarray:
        """Draws of one patch, float32 ``[steps + 1, B, P, C]``: the start, then one a noisy step.

        With ``rows_apart`` the unconditional rows, which follow, have draws of their own: ``[steps + 1, 2B, P, C]``.
        """
        streams = (Stream.IMAGE, Stream.UNCONDITIONAL) if rows_apart else (Stream.IMAGE,)
        drawn = 1 if self.start_only else self.steps + 1
        draws = [normals(seed, stream, patch, drawn, self.patch_shape) for stream in streams for seed in self.seeds]
        noise = np.zeros((self.steps + 1, len(draws), *self.patch_shape), np.float32)
        noise[:drawn] = np.stack(draws, axis=1)
        return noise
