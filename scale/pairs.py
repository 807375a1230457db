"""Images of two jobs with the same seeds, image by image: flipped bits, PSNR, SSIM."""

from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from bitdance_edge.evaluation.bootstrap import standard_errors
from bitdance_edge.evaluation.similarity import ssim
from bitdance_edge.runtime.quality import psnr_of_error
from bitdance_edge.scale.errors import ScaleError
from bitdance_edge.scale.scores import Figure, Figures
from bitdance_edge.scale.sources import Job

SAME = ("subjects", "count", "seed", "settings")  # of plans whose images are compared


@dataclass(frozen=True)
class Pairs:
    """What differs between the images of each pair, float64 ``[N]``; ``flipped``: the share of bits, if known."""

    errors: np.ndarray  # mean squared error
    ssim: np.ndarray
    flipped: np.ndarray | None

    def figures(self, times: int) -> Figures:
        """The figures of all pairs, with the bootstrap's errors; ``psnr_db`` is absent where all images are equal."""
        errors = standard_errors(self._measured, len(self.errors), times)
        found = self._measured(np.arange(len(self.errors)))
        return {name: Figure(value, errors.get(name)) for name, value in found.items()}

    def _measured(self, rows: np.ndarray) -> dict[str, float]:
        error = float(self.errors[rows].mean())
        return {
            **({} if self.flipped is None else {"bits_flipped": float(self.flipped[rows].mean())}),
            **({"psnr_db": psnr_of_error(error)} if self.errors.any() else {}),
            "ssim": float(self.ssim[rows].mean()),
            "identical": float((self.errors[rows] == 0).mean()),
        }


def compare(first: Job, second: Job) -> Pairs:
    """Compare the images of two jobs, seed by seed.

    Raises:
        ScaleError: they are not of the same subjects, seeds and settings, or a shard is damaged.
    """
    differing = [name for name in SAME if getattr(first.plan, name) != getattr(second.plan, name)]
    if differing:
        raise ScaleError(
            f"{first.folder} and {second.folder} differ in {', '.join(differing)}; images are compared seed by seed: "
            "make both by the same options"
        )
    errors, similar, flipped = [], [], []
    rows = zip(first.rows(), second.rows(), strict=True)
    for one, other in tqdm(rows, "comparing", total=first.images, unit="image", leave=False, disable=None):
        errors.append(np.square(one.pixels.astype(np.float64) - other.pixels).mean())
        similar.append(ssim(one.pixels, other.pixels))
        if one.bits is not None and other.bits is not None:
            flipped.append(np.mean(np.unpackbits(one.bits) != np.unpackbits(other.bits)))
    known = len(flipped) == len(errors)
    return Pairs(np.array(errors), np.array(similar), np.array(flipped) if known else None)
