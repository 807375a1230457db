"""Euler-Maruyama sampling of a patch, step by step as in the paper (section 3.3).

This is the plain path: drift and score by name, in float32. The runtime folds each step into three numbers and is
checked against it.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

LAST_TIME = 0.95  # end of the grid; the last step, from there to 1, adds no noise
LAST_STEP = 1 - LAST_TIME

# (noisy tokens [R, P, C], times [R]) -> clean tokens [R, P, C]
Predict = Callable[[Tensor, Tensor], Tensor]


def shift_times(times: Tensor, shift: float) -> Tensor:
    """Move times in [0, 1] towards the noise for shift > 1; a shift of 1 changes nothing."""
    return (1 / shift) / (1 / shift + (1 / times - 1))


def time_grid(steps: int, shift: float) -> Tensor:
    """Return the ``steps + 1`` times at which the head is evaluated, float32, from 0.

    They are those of ``torch.linspace`` where it multiplies and adds with one rounding. Without such an instruction it
    rounds twice, and the differences of neighbouring times would depend on the processor.
    """
    end = torch.tensor(LAST_TIME)
    step, index = (end / steps).double(), torch.arange(steps + 1)
    times = torch.where(index < (steps + 1) // 2, step * index, end.double() - step * (steps - index))
    return shift_times(times.float(), shift)


def velocity(clean: Tensor, noisy: Tensor, time: Tensor) -> Tensor:
    """Return the rectified-flow velocity towards ``clean``; the floor keeps it finite near time 1."""
    return (clean - noisy) / (1 - time).clamp_min(LAST_STEP)


def noise_scale(time: Tensor, dt: Tensor) -> Tensor:
    return (2 * (1 - time) * dt).sqrt()


def euler_maruyama_step(x: Tensor, v: Tensor, time: Tensor, dt: Tensor, noise: Tensor) -> Tensor:
    score = (time * v - x) / ((1 - time) ** 2 + time * (1 - time))
    return x + (v + (1 - time) * score) * dt + noise_scale(time, dt) * noise


def sample_patch(predict: Predict, noise: Iterator[Tensor], steps: int, shift: float, guidance: float) -> Tensor:
    """Sample one patch, without taking the sign.

    With guidance above 1, ``predict`` gets the same noisy tokens twice, conditional rows first, and the two predictions
    are combined; the result has the rows of one draw.

    Args:
        predict: the head with its condition bound, called ``steps + 1`` times.
        noise: standard normal draws ``[B, P, C]``: one to start from, then one a step; the last step takes none.

    Returns:
        float32 ``[B, P, C]``.
    """
    x = next(noise)
    times = time_grid(steps, shift).to(x.device)

    def guided_velocity(time: Tensor) -> Tensor:
        rows = x.repeat(2, 1, 1) if guidance > 1 else x
        v = velocity(predict(rows, time.expand(rows.shape[0])).float(), rows, time)
        if guidance > 1:
            conditional, unconditional = v.chunk(2)
            v = unconditional + guidance * (conditional - unconditional)
        return v

    time = times[0]
    for dt in times.diff():
        x = euler_maruyama_step(x, guided_velocity(time), time, dt, next(noise))
        time = time + dt
    return x + guided_velocity(x.new_tensor(LAST_TIME)) * LAST_STEP


def patch_guidance(guidance: float, schedule: str, patch: int, patches: int) -> float:
    """Return the guidance of one patch: ``constant``, or ``linear`` from exactly 1 at the first patch."""
    return guidance if schedule == "constant" else 1 + (guidance - 1) * patch / patches
