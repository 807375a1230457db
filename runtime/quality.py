"""Two distances that reports give: PSNR between images, and the Fréchet distance between sets of features."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np


def psnr(want: np.ndarray, got: np.ndarray, peak: float = 255.0) -> float:
    """Return the peak signal-to-noise ratio in dB, from the mean squared error over all elements, in float64.

    Args:
        want, got: arrays of one shape and any real dtype; uint8 images ``[..., H, W, 3]`` with the default ``peak``.
        peak: the largest value that an element can take.

    Returns:
        The ratio in dB; ``inf`` where the arrays are equal.
    """
    return psnr_of_error(float(np.square(want.astype(np.float64) - got.astype(np.float64)).mean()), peak)


def psnr_of_error(error: float, peak: float = 255.0) -> float:
    """Return the peak signal-to-noise ratio in dB of a mean squared error; ``inf`` where that is 0."""
    return float("inf") if error == 0 else float(10 * np.log10(peak**2 / error))


@dataclass(frozen=True)
class Gaussian:
    """A normal distribution: ``mean`` float64 ``[F]`` and ``covariance`` float64 ``[F, F]``."""

    mean: np.ndarray
    covariance: np.ndarray

    @classmethod
    def fitted(cls, features: np.ndarray) -> "Gaussian":
        """Fit one to features ``[N, F]``, with N of at least 2."""
        values = features.astype(np.float64)
        return cls(values.mean(0), np.atleast_2d(np.cov(values, rowvar=False)))

    @cached_property
    def root(self) -> np.ndarray:
        """The symmetric square root of the covariance."""
        values, vectors = np.linalg.eigh(self.covariance)
        return (vectors * np.sqrt(values.clip(min=0))) @ vectors.T

    def distance(self, other: "Gaussian") -> float:
        """Return the Fréchet distance to another Gaussian.

        Heusel et al., arXiv 1706.08500, eq. 6. The trace of the square root of the product of both covariances is that
        of ``root @ other.covariance @ root``, which is symmetric; its eigenvalues are not negative but for rounding.
        """
        shared = np.sqrt(np.linalg.eigvalsh(self.root @ other.covariance @ self.root).clip(min=0)).sum()
        means = np.square(self.mean - other.mean).sum()
        return float(means + np.trace(self.covariance) + np.trace(other.covariance) - 2 * shared)


def frechet_distance(features: np.ndarray, others: np.ndarray) -> float:
    """Return the Fréchet distance between Gaussians fitted to two sets of features, in float64.

    Args:
        features, others: ``[N, F]`` and ``[M, F]``, with N and M of at least 2.
    """
    return Gaussian.fitted(others).distance(Gaussian.fitted(features))
