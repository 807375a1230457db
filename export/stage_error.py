"""How far an exported stage is from PyTorch, and how far it may be."""

from dataclasses import dataclass

import numpy as np

from bitdance_edge.export.errors import ExportError
from bitdance_edge.runtime.bundle.stage_names import StageName

# Largest error relative to the stage's largest value. float32 leaves room for another order of summation; the half
# precisions for their rounding, which grows through layers and sampling steps.
TOLERANCES = {"fp32": 1e-4, "fp16": 2e-2, "bf16": 1e-1}
# Pixels differ by whole levels: by one where a value lies on the edge between two, by more where precision is low.
PIXEL_TOLERANCES = {"fp32": 1 / 255, "fp16": 8 / 255, "bf16": 24 / 255}


@dataclass
class StageError:
    """Largest error seen, relative to the largest value of the stage's output (of pixels: to 255)."""

    stage: str
    tolerance: float
    worst: float = 0.0

    @classmethod
    def of(cls, stage: str, precision: str) -> "StageError":
        """No error yet of a stage that is exported in ``precision``."""
        tolerances = PIXEL_TOLERANCES if stage == StageName.DECODER else TOLERANCES
        return cls(stage, tolerances[precision])

    @property
    def passed(self) -> bool:
        return self.worst <= self.tolerance

    def compare(self, got: np.ndarray, want: np.ndarray, scale: float | None = None) -> None:
        """Compare an output with PyTorch's, of any shape and dtype; ``scale`` replaces the largest value of PyTorch's.

        Raises:
            ExportError: PyTorch's output is not finite.
        """
        self.require_finite(want)
        if got.shape != want.shape or not np.isfinite(got.astype(np.float64)).all():
            self.worst = float("inf")
            return
        error = np.abs(got.astype(np.float64) - want.astype(np.float64)).max()
        self.worst = max(self.worst, float(error / (scale or np.abs(want).max() or 1.0)))

    def require_finite(self, want: np.ndarray) -> None:
        """Refuse an output of PyTorch's that is not finite; bytes and bits made of it would hide that.

        Raises:
            ExportError: a value is NaN or infinite.
        """
        if not np.isfinite(want).all():
            raise ExportError(
                f"{self.stage}: PyTorch's own output has values that are not finite, so the checkpoint's weights are "
                "damaged or of another model; nothing was written"
            )
