"""A sampler as three numbers a step: ``x <- A * x + B * clean + C * noise``.

With a head that predicts the clean token and rectified flow, the velocity is v = (clean - x) / m with
m = max(1 - t, 0.05), and the score of the noisy tokens is (t * v - x) / (1 - t). Each process
dx = (v + g^2 / 2 * score) dt + g dW has the same distribution at any time (Y. Song et al., arXiv 2011.13456, sec. 4.3):

- ``sde``, the reference's (paper section 3.3): g^2 / 2 = 1 - t, so the drift is (1 + t) * v - x. The Euler-Maruyama
  step has B = (1 + t) * dt / m, A = 1 - dt - B, C = sqrt(2 * (1 - t) * dt).
- ``ode``, the deterministic limit: g = 0, the drift is v. The Euler step has B = dt / m, A = 1 - B, C = 0; only the
  draw that a patch starts from is random.

The last step crosses from 0.95 to 1 without noise, which is the clean token itself: A = 0, B = 1, C = 0.

A variation of given tokens starts later than at time 0, from their mix with noise at that time (SDEdit, Meng et al.,
arXiv 2108.01073), and takes as many steps as there is time left.
"""

from dataclasses import dataclass

import numpy as np

LAST_TIME = 0.95
LEAST_TIME_LEFT = 0.4  # at which the slope of the logit ends
MAX_STEPS = 1000
MAX_WINDOW = 64
MAX_GUIDANCE = 100
SAMPLERS = ("sde", "ode")
GUIDANCE_SCHEDULES = ("constant", "linear")


@dataclass(frozen=True)
class Schedule:
    """Everything that depends only on the sampler and its number of steps, computed in float64."""

    times: np.ndarray  # float32 [evaluations]: when the head is evaluated, the first of them the start
    coefficients: np.ndarray  # float32 [evaluations, 3]: A, B, C

    @property
    def evaluations(self) -> int:
        """Evaluations of the head a patch: ``steps + 1`` from time 0, fewer from a later start."""
        return len(self.times)

    @property
    def reached(self) -> np.ndarray:
        """The time after each evaluation, float32 ``[evaluations]``."""
        return np.append(self.times[1:], np.float32(1))

    @property
    def logit_slopes(self) -> np.ndarray:
        """How fast the logit of the clean token rises with the state at each evaluation (``model/window.py``)."""
        return self.times / np.maximum(1 - self.times, LEAST_TIME_LEFT) ** 2

    @classmethod
    def of(cls, sampler: str, steps: int, time_shift: float, start: float = 0.0) -> "Schedule":
        """The schedule of one of ``SAMPLERS`` from the time ``start`` on, in steps as long as from time 0."""
        return {"sde": cls.euler_maruyama, "ode": cls.euler}[sampler](steps, time_shift, start)

    @classmethod
    def euler_maruyama(cls, steps: int, time_shift: float, start: float = 0.0) -> "Schedule":
        """``steps`` noisy steps (fewer from a later start) and the last one."""
        time, dt, left = _grid(steps, time_shift, start)
        b = (1 + time) * dt / left
        return cls._ending(time, 1 - dt - b, b, np.sqrt(2 * (1 - time) * dt))

    @classmethod
    def euler(cls, steps: int, time_shift: float, start: float = 0.0) -> "Schedule":
        """``steps`` steps along the velocity (fewer from a later start) and the last one."""
        time, dt, left = _grid(steps, time_shift, start)
        b = dt / left
        return cls._ending(time, 1 - b, b, np.zeros_like(b))

    @classmethod
    def _ending(cls, time: np.ndarray, a: np.ndarray, b: np.ndarray, c: np.ndarray) -> "Schedule":
        return cls(
            times=np.append(time, LAST_TIME).astype(np.float32),
            coefficients=np.vstack([np.stack([a, b, c], axis=1), [0.0, 1.0, 0.0]]).astype(np.float32),
        )


def _grid(steps: int, time_shift: float, start: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Time, length and m (the time left) of each step but the last; none for a start after the end of the grid."""
    first = min(start / (start + (1 - start) / time_shift), LAST_TIME)  # the inverse of the shift below
    share = (LAST_TIME - first) / LAST_TIME
    grid = np.linspace(first, LAST_TIME, max(1, round(steps * share)) + 1 if share else 1)
    with np.errstate(divide="ignore"):  # 1 / 0 is infinity, which maps to time 0
        grid = (1 / time_shift) / (1 / time_shift + (1 / grid - 1))
    time = grid[:-1]
    return time, np.diff(grid), np.maximum(1 - time, 1 - LAST_TIME)


def patch_guidance(guidance: float, schedule: str, patch: int, patches: int) -> float:
    """Guidance of one patch: ``constant``, or ``linear`` from exactly 1 at the first patch towards ``guidance``."""
    return guidance if schedule == "constant" else 1 + (guidance - 1) * patch / patches
