"""Euler-Maruyama as three numbers a step: ``x <- A * x + B * clean + C * noise``.

With a head that predicts the clean token and rectified flow, the drift is (1 + t) * v - x and v = (clean - x) / m with
m = max(1 - t, 0.05); collecting terms gives B = (1 + t) * dt / m, A = 1 - dt - B, C = sqrt(2 * (1 - t) * dt) (paper
section 3.3). The last step crosses from 0.95 to 1 without noise, which is the clean token itself: A = 0, B = 1, C = 0.
"""

from dataclasses import dataclass

import numpy as np

LAST_TIME = 0.95


@dataclass(frozen=True)
class Schedule:
    """Everything about sampling that depends on the number of steps alone."""

    times: np.ndarray  # float32 [steps + 1]: when the head is evaluated
    coefficients: np.ndarray  # float32 [steps + 1, 3]: A, B, C

    @classmethod
    def euler_maruyama(cls, steps: int, time_shift: float) -> "Schedule":
        """The schedule of ``steps`` noisy steps and the last one, computed in float64."""
        grid = np.linspace(0, LAST_TIME, steps + 1)
        with np.errstate(divide="ignore"):  # 1 / 0 is infinity, which maps to time 0
            grid = (1 / time_shift) / (1 / time_shift + (1 / grid - 1))
        time, dt = grid[:-1], np.diff(grid)
        b = (1 + time) * dt / np.maximum(1 - time, 1 - LAST_TIME)
        noisy = np.stack([1 - dt - b, b, np.sqrt(2 * (1 - time) * dt)], axis=1)
        return cls(
            times=np.append(time, LAST_TIME).astype(np.float32),
            coefficients=np.vstack([noisy, [0.0, 1.0, 0.0]]).astype(np.float32),
        )


def patch_guidance(guidance: float, schedule: str, patch: int, patches: int) -> float:
    """Guidance of one patch: ``constant``, or ``linear`` from exactly 1 at the first patch towards ``guidance``."""
    return guidance if schedule == "constant" else 1 + (guidance - 1) * patch / patches
