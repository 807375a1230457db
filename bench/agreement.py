"""How far two contenders' images are the same: their bits, and their pixels."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bitdance_edge.bench.bits import BitCounts, Predictions, compare_tokens
from bitdance_edge.bench.errors import BenchError
from bitdance_edge.runtime.bundle.manifest import Bundle
from bitdance_edge.runtime.bundle.stage_names import StageName
from bitdance_edge.runtime.quality import psnr

QUANTISED_BUDGET = 0.02  # of the bits, unless --max-bit-flips says otherwise


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How far one contender agrees with the reference.

    Attributes:
        free: bits of free generation.
        first_patch: the first patch, from 1, with a wrong bit; None where there is none.
        forced: bits under teacher forcing; None where that was not measured.
        levels: largest difference of a pixel's levels of 255.
        psnr: in dB; None where no pixel differs.
        calibration: the shares of flipped bits, ``forced`` and ``free``, that the bundle's own report states.
    """

    free: BitCounts
    first_patch: int | None
    forced: BitCounts | None
    levels: int
    psnr: float | None
    calibration: Mapping[str, float] | None

    def to_json(self) -> dict[str, Any]:
        return {
            "free": self.free.to_json(),
            "first_patch": self.first_patch,
            "forced": None if self.forced is None else self.forced.to_json(),
            "levels": self.levels,
            "psnr": self.psnr,
            "calibration": self.calibration,
        }


def agreement(
    reference: Path, other: Path, tokens_per_step: int, forced: BitCounts | None, bundle: Bundle | None
) -> Agreement:
    """Compare two files of tokens and pixels; the reference's holds its predictions too."""
    with np.load(reference, allow_pickle=False) as want, np.load(other, allow_pickle=False) as got:
        counts, patch = compare_tokens(got["tokens"], want["tokens"], Predictions.load(want), tokens_per_step)
        pixels = want["pixels"], got["pixels"]
    levels = int(np.abs(pixels[0].astype(int) - pixels[1]).max())
    return Agreement(
        free=counts,
        first_patch=None if patch is None else patch + 1,
        forced=forced,
        levels=levels,
        psnr=psnr(*pixels) if levels else None,
        calibration=None if bundle is None else _calibration(bundle),
    )


def _calibration(bundle: Bundle) -> dict[str, float] | None:
    report = bundle.folder / "calibration" / "report.json"
    if not report.is_file():
        return None
    try:
        bits = json.loads(report.read_text(encoding="utf-8"))["bits"]
        return {"forced": float(bits["forced"]), "free": float(bits["free"])}
    except (ValueError, KeyError, TypeError):
        raise BenchError(
            f"{report} is not a report of bitdance-edge calibrate; calibrate {bundle.folder} again"
        ) from None


def quantised(bundle: Bundle) -> bool:
    """Whether a stage of the generation is not in float32, so that its bits are not expected to be PyTorch's."""
    return any(stage.precision != "fp32" for name, stage in bundle.stages.items() if name != StageName.ENCODER)


def require_same(bundle: Bundle, found: Agreement, allowed: float | None) -> None:
    """Refuse to compare the speed of different images.

    A float32 bundle is judged by its free generation, any other under teacher forcing: in free generation one flipped
    bit changes all patches after it, which says nothing of the precision.

    Args:
        allowed: share of the compared bits that may be wrong; None: 0 in float32, else ``QUANTISED_BUDGET``.

    Raises:
        BenchError: more are wrong.
    """
    rounded = quantised(bundle)
    limit = allowed if allowed is not None else QUANTISED_BUDGET if rounded else 0.0
    counts = found.free if not rounded or found.forced is None else found.forced
    if counts.wrong_share <= limit:
        return
    how = "under teacher forcing" if rounded else f"from patch {found.first_patch} on"
    forced = (
        "" if rounded or found.forced is None else f" ({100 * found.forced.wrong_share:.3g} % under teacher forcing)"
    )
    raise BenchError(
        f"{bundle.folder}: {100 * counts.wrong_share:.3g} % of {counts.compared} bits differ from PyTorch's by more "
        f"than rounding {how}{forced}; at most {100 * limit:g} % may. No speed is shown for a different image: find "
        f"the stage with bitdance-edge compare {bundle.folder}, or allow it with "
        f"--max-bit-flips {100 * counts.wrong_share * 1.01:.3g}%"
    )
