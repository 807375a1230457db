"""How far a scale reaches: number formats, weighted histograms of what enters each layer, and four ways to a limit.

INT8 is symmetric, -127 to 127. FP8 is E4M3 (OCP 8-bit floating point, https://arxiv.org/abs/2209.05433), up to 448.
INT4 and NVFP4 are for weights alone (see ``weights``).

ONNX Runtime's own calibrators keep every tensor or take no weights; these keep one histogram a layer, whatever the
number of samples, and count a sample of the head by how much its sampling time matters (see ``trials.time_effects``).
"""

from dataclasses import dataclass

import ml_dtypes
import numpy as np

PRECISIONS = ("int8", "fp8", "int4", "nvfp4")
CALIBRATORS = ("max", "percentile", "entropy", "mse")
BINS = 2048
SMALLEST = 2.0**-40  # first upper edge of a histogram; doubled until the values fit
CANDIDATES = np.linspace(0.25, 1.0, 76)  # shares of the largest value that are tried as limits


@dataclass(frozen=True)
class Format:
    """A format of activations and weights; ``largest`` is its largest number."""

    name: str
    largest: float

    def rounded(self, values: np.ndarray, limit: float) -> np.ndarray:
        """Round float64 ``values`` to the format with its range scaled to ``limit``; larger ones become the limit."""
        scaled = np.clip(values / (limit / self.largest), -self.largest, self.largest)
        numbers = np.rint(scaled) if self.name == "int8" else scaled.astype(ml_dtypes.float8_e4m3fn).astype(np.float64)
        return numbers * (limit / self.largest)


FORMATS = {"int8": Format("int8", 127.0), "fp8": Format("fp8", 448.0)}


class Histogram:
    """Weighted counts of magnitudes in ``BINS`` equal bins up to ``edge``, which doubles as larger values come."""

    def __init__(self) -> None:
        self.edge = SMALLEST
        self.counts = np.zeros(BINS)
        self.largest = 0.0

    def add(self, values: np.ndarray, weight: float) -> bool:
        """Count ``values`` of any shape; return False, with nothing counted, if one is not finite."""
        magnitudes = np.abs(values.ravel().astype(np.float32))
        top = float(magnitudes.max(initial=0.0))
        if not np.isfinite(top):
            return False
        self.largest = max(self.largest, top)
        while self.edge <= top:
            self.counts = np.concatenate([self.counts.reshape(-1, 2).sum(axis=1), np.zeros(BINS // 2)])
            self.edge *= 2
        bins = (magnitudes * np.float32(BINS / self.edge)).astype(np.int32)
        self.counts += weight * np.bincount(np.minimum(bins, BINS - 1), minlength=BINS)
        return True

    @property
    def centres(self) -> np.ndarray:
        return (np.arange(BINS) + 0.5) * (self.edge / BINS)


def limit(histogram: Histogram, calibrator: str, percentile: float, number: Format) -> float:
    """Choose the largest magnitude that the scale of a layer reaches; 0 where all inputs were 0.

    Args:
        calibrator: "max" the largest seen; "percentile" of the magnitudes; "entropy" the least Kullback-Leibler
            divergence of the rounded from the true distribution
            (S. Migacz, "8-bit inference with TensorRT", GTC 2017); "mse" the least squared error of rounding.
        percentile: of the "percentile" calibrator, 50 to 100.
    """
    if histogram.largest == 0 or calibrator == "max":
        return histogram.largest
    if calibrator == "percentile":
        reached = np.cumsum(histogram.counts) / histogram.counts.sum()
        first = int(np.searchsorted(reached, percentile / 100))
        return min(histogram.largest, (first + 1) * histogram.edge / BINS)
    loss = squared_error if calibrator == "mse" else divergence
    losses = [loss(histogram, share * histogram.largest, number) for share in CANDIDATES]
    return float(CANDIDATES[int(np.argmin(losses))] * histogram.largest)


def squared_error(histogram: Histogram, limit: float, number: Format) -> float:
    """Return the mean squared error of magnitudes rounded to a format whose range reaches ``limit``."""
    centres = histogram.centres
    error = number.rounded(centres, limit) - centres
    return float(np.average(np.square(error), weights=histogram.counts))


def divergence(histogram: Histogram, limit: float, number: Format) -> float:
    """Return the Kullback-Leibler divergence from the true distribution, clipped at ``limit``, to the rounded one.

    Values beyond the limit are counted in the bin at the limit. The mass that is rounded to one number is spread evenly
    over the bins that held any of it.
    """
    inside = histogram.centres - histogram.edge / (2 * BINS) <= limit  # the limit's own bin is inside
    truth = histogram.counts[inside].copy()
    truth[-1] += histogram.counts[~inside].sum()
    _, level = np.unique(number.rounded(histogram.centres[inside], limit), return_inverse=True)
    filled = histogram.counts[inside] > 0
    mass = np.bincount(level, histogram.counts[inside])
    spread = mass[level] * filled / np.maximum(np.bincount(level, filled)[level], 1)
    p, q = truth / truth.sum(), spread / max(spread.sum(), 1e-300)
    counted = p > 0
    return float(np.sum(p[counted] * np.log(p[counted] / np.maximum(q[counted], 1e-12))))
