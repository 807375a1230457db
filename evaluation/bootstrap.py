"""Error bars by the bootstrap: what a figure would have been with other images of the same kind.

The images are drawn again with replacement. The same draws are used for all figures, so that those of two bundles with
the same seeds are compared image by image.
"""

from collections.abc import Callable, Iterator

import numpy as np
from tqdm import tqdm

SEED = 0


def resamples(images: int, times: int) -> Iterator[np.ndarray]:
    """Yield ``times`` draws of ``images`` indices, int64 ``[images]``; always the same ones."""
    generator = np.random.default_rng(SEED)
    for _ in range(times):
        yield generator.integers(0, images, images)


def standard_errors(measure: Callable[[np.ndarray], dict[str, float]], images: int, times: int) -> dict[str, float]:
    """Return the standard deviation of each figure of ``measure`` over draws of indices; none of fewer than 2 draws."""
    drawn = [
        measure(rows) for rows in tqdm(resamples(images, times), "error bars", total=times, leave=False, disable=None)
    ]
    if len(drawn) < 2:
        return {}
    return {name: float(np.std([each[name] for each in drawn], ddof=1)) for name in drawn[0]}
