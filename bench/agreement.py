"""How far two contenders' images are the same: their bits, and their pixels."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bitdance_edge.bench.errors import BenchError
from bitdance_edge.runtime.bundle.manifest import Bundle

QUANTISED_BUDGET = 0.02  # of the bits, where no other is asked for


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Of one contender with the reference; shares are of all compared bits.

    Attributes:
        forced: share that turns under teacher forcing; None where that was not measured.
        first_patch: the first patch, from 1, in which a bit differs; None where none does.
        levels: largest difference of a pixel's levels of 255; psnr is None where no pixel differs.
        calibration: the share under teacher forcing and in free generation that the bundle's own report says.
    """

    bits: int
    different: int
    first_patch: int | None
    forced: float | None
    levels: int
    psnr: float | None
    calibration: Mapping[str, float] | None

    @property
    def free(self) -> float:
        return self.different / self.bits

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "free": self.free}


def agreement(
    reference: Path, other: Path, tokens_per_step: int, forced: Sequence[float] | None, bundle: Bundle | None
) -> Agreement:
    """Compare two files of tokens and pixels."""
    with np.load(reference, allow_pickle=False) as want, np.load(other, allow_pickle=False) as got:
        differ = want["tokens"] != got["tokens"]
        pixels = want["pixels"].astype(int) - got["pixels"]
    patches = np.flatnonzero(differ.any(axis=(0, 2)))
    square = float(np.mean(np.square(pixels)))
    return Agreement(
        bits=differ.size,
        different=int(differ.sum()),
        first_patch=int(patches[0]) // tokens_per_step + 1 if len(patches) else None,
        forced=None if forced is None else float(np.mean(forced)),
        levels=int(np.abs(pixels).max()),
        psnr=10 * float(np.log10(255**2 / square)) if square else None,
        calibration=None if bundle is None else _calibration(bundle),
    )


def _calibration(bundle: Bundle) -> dict[str, float] | None:
    report = bundle.folder / "calibration" / "report.json"
    if not report.is_file():
        return None
    try:
        bits = json.loads(report.read_text())["bits"]
        return {"forced": float(bits["forced"]), "free": float(bits["free"])}
    except (ValueError, KeyError, TypeError):
        raise BenchError(
            f"{report} is not a report of bitdance-edge calibrate; calibrate {bundle.folder} again"
        ) from None


def quantised(bundle: Bundle) -> bool:
    """Whether a stage of the generation is not in float32, so that its bits are not expected to be PyTorch's."""
    return any(stage.precision != "fp32" for name, stage in bundle.stages.items() if name != "encoder")


def require_same(bundle: Bundle, found: Agreement, allowed: float | None) -> None:
    """Refuse to compare the speed of different images.

    A float32 bundle is held to its free generation, any other to teacher forcing: a bit that turns there changes all
    patches after it, which says nothing of the rounding.

    Args:
        allowed: share of bits that may differ; None is none in float32, ``QUANTISED_BUDGET`` else.

    Raises:
        BenchError: more do.
    """
    rounded = quantised(bundle)
    limit = allowed if allowed is not None else QUANTISED_BUDGET if rounded else 0.0
    share = found.free if not rounded or found.forced is None else found.forced
    if share <= limit:
        return
    how = "under teacher forcing" if rounded else f"from patch {found.first_patch} on"
    forced = "" if rounded or found.forced is None else f" ({100 * found.forced:.3g} % under teacher forcing)"
    raise BenchError(
        f"{bundle.folder}: {100 * share:.3g} % of {found.bits} bits differ from PyTorch's {how}{forced}, "
        f"{100 * limit:g} % may. No speed is shown for another image: see which stage with bitdance-edge compare, "
        f"or allow it with --max-bit-flips {100 * share * 1.01:.3g}%"
    )
