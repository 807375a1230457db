"""Several candidates for an image, of which the one is kept that best fits what was given."""

from dataclasses import replace

import numpy as np

from bitdance_edge.runtime.given import GivenTokens
from bitdance_edge.runtime.request import Settings

LEAST = 1e-4  # probability of a bit, so that a single surprise decides nothing


class Likelihood:
    """Adds up how likely given patches are behind what was sampled: natural logarithm, one number an image."""

    def __init__(self, given: GivenTokens) -> None:
        self.given = given
        self.total = np.zeros(len(given.tokens))

    def add(self, patch: int, expected: np.ndarray) -> None:
        """Add a patch of whose bits the head expects these means, float32 ``[B, P, C]``.

        A bit with mean m is 1 with probability (1 + m) / 2; bits count as independent.
        """
        probability = np.clip((1 + self.given.tokens[:, patch] * expected) / 2, LEAST, 1)
        self.total += np.log(probability.astype(np.float64)).sum(axis=(1, 2))


class Likeliest:
    """The best candidate so far of each image of a batch: ``tokens`` int8 ``[B, h*w, C]``, seeds in ``batch``."""

    def __init__(self, batch: Settings) -> None:
        self.batch = batch
        self.tokens = np.zeros((len(batch.images), 0, 0), np.int8)
        self._likelihood = np.full(len(batch.images), -np.inf)

    def compare(self, tokens: np.ndarray, drawn: Settings, likelihood: np.ndarray) -> None:
        """Take in ``drawn`` candidates, several of each image in a row; of equal ones the first is kept."""
        images = len(self.batch.images)
        each = likelihood.reshape(images, -1)
        best = each.argmax(axis=1)
        better = each[np.arange(images), best] > self._likelihood
        rows = np.arange(images) * each.shape[1] + best
        if not self.tokens.size:
            self.tokens = tokens[rows]
        self.tokens[better] = tokens[rows[better]]
        self._likelihood[better] = likelihood[rows[better]]
        chosen = [
            replace(image, seed=drawn.images[row].seed) if new else image
            for image, row, new in zip(self.batch.images, rows, better, strict=True)
        ]
        self.batch = replace(self.batch, images=tuple(chosen), candidates=1)
