"""How alike two images are, by scikit-image."""

from collections.abc import Iterable

import numpy as np
from skimage.metrics import structural_similarity

WINDOW = 7  # pixels a side, the library's default


def ssim(want: np.ndarray, got: np.ndarray) -> float:
    """Measure the structural similarity of two images uint8 ``[H, W, 3]``: the mean over windows and channels."""
    return float(structural_similarity(want, got, win_size=WINDOW, channel_axis=2, data_range=255))  # type: ignore[arg-type]


def mean_ssim(want: Iterable[np.ndarray], got: Iterable[np.ndarray]) -> float:
    """Measure the mean structural similarity over pairs of images uint8 ``[H, W, 3]``."""
    return float(np.mean([ssim(one, other) for one, other in zip(want, got, strict=True)]))
