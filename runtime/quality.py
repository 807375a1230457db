"""Two distances that reports give: PSNR between images, and the Fréchet distance between sets of features."""

import numpy as np


def psnr(want: np.ndarray, got: np.ndarray, peak: float = 255.0) -> float:
    """Return the peak signal-to-noise ratio in dB, from the mean squared error over all elements, in float64.

    Args:
        want, got: arrays of one shape and any real dtype; uint8 images ``[..., H, W, 3]`` with the default ``peak``.
        peak: the largest value that an element can take.

    Returns:
        The ratio in dB; ``inf`` where the arrays are equal.
    """
    error = np.square(want.astype(np.float64) - got.astype(np.float64)).mean()
    return float("inf") if error == 0 else float(10 * np.log10(peak**2 / error))


def frechet_distance(features: np.ndarray, others: np.ndarray) -> float:
    """Return the Fréchet distance between Gaussians fitted to two sets of features, in float64.

    Heusel et al., arXiv 1706.08500, eq. 6. The trace of the square root of the product of both covariances is the sum
    of the square roots of the product's eigenvalues, which are real and not negative but for rounding.

    Args:
        features, others: ``[N, F]`` and ``[M, F]``, with N and M of at least 2.
    """
    first, second = features.astype(np.float64), others.astype(np.float64)
    first_covariance, second_covariance = (np.atleast_2d(np.cov(one, rowvar=False)) for one in (first, second))
    shared = np.sqrt(np.linalg.eigvals(first_covariance @ second_covariance).real.clip(min=0)).sum()
    means = np.square(first.mean(0) - second.mean(0)).sum()
    return float(means + np.trace(first_covariance) + np.trace(second_covariance) - 2 * shared)
