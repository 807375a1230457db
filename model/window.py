"""Sampling a patch in sweeps: the head evaluates a window of times at once, then the recurrence is redone.

A patch's N + 1 evaluations depend on each other only through their states. Guess the states, evaluate the head at W of
them in one pass, redo the recurrence, and move the window behind the first state that still moves: noise is fixed, so
what no longer moves is what sampling one evaluation after the other gives (Picard iteration of a diffusion's
trajectory: Shih et al., arXiv 2305.16317; Tang et al., arXiv 2402.09970).

Between sweeps a prediction is not reused but follows its state: for bits with independent noise the clean token is
tanh(logit + s * x) with s = t / (1 - t)^2, so a move d of the state changes it by tanh(logit + s * d) - clean. Of that
change a share is taken, fitted at each time from the last two sweeps, for conditional and unconditional rows apart.
Times that were not evaluated yet carry on the last logit. This is the plain path, one image at a time; the stages in
``export/window_stages.py`` are checked against it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

CLIP = 0.999  # of a prediction, before its logit is taken
LEAST_TIME_LEFT = 0.4  # at which the slope of the logit ends: trained heads are flatter than the formula near time 1
LARGEST_SHARE = 1.5
LEAST_CHANGE = 1e-10  # sum of squares from which a share can be fitted

# (evaluations [w], noisy tokens [w, P, C]) -> clean tokens [w, H, P, C]: H = 2, conditional first, under guidance
Evaluate = Callable[[Tensor, Tensor], Tensor]
# (evaluation, noisy tokens [P, C], guided clean tokens [P, C]) -> noisy tokens of the next evaluation
Advance = Callable[[int, Tensor, Tensor], Tensor]


def logit_slopes(times: Tensor) -> Tensor:
    """How fast the logit of the clean token rises with the state, at each time."""
    return times / (1 - times).clamp_min(LEAST_TIME_LEFT) ** 2


@dataclass
class Trajectory:
    """What is known of a patch's K evaluations: where each was made last, and what it gave."""

    x: Tensor  # [K, P, C]
    clean: Tensor  # [K, H, P, C]
    share: Tensor  # [K, H, 1, 1] of the analytic change that is taken
    slopes: Tensor  # [K]
    done: int = 0  # evaluations made so far, from the first on

    def evaluated(self, first: int, x: Tensor, clean: Tensor) -> None:
        """Take the evaluations of a window."""
        again = slice(first, min(self.done, first + len(x)))
        count = max(0, again.stop - again.start)
        self.share[first : first + len(x)] = 1
        if count:
            moved = (x[:count] - self.x[again])[:, None] * self.slopes[again, None, None, None]
            level = clean[:count].clamp(-CLIP, CLIP)
            change = level - torch.tanh(torch.atanh(level) - moved)
            size = (change * change).sum((2, 3), keepdim=True)
            came_true = ((clean[:count] - self.clean[again]) * change).sum((2, 3), keepdim=True)
            fitted = torch.where(size > LEAST_CHANGE, came_true / size.clamp_min(LEAST_CHANGE), 1.0)
            self.share[again] = fitted.clamp(0, LARGEST_SHARE)
        self.x[first : first + len(x)], self.clean[first : first + len(x)] = x, clean
        self.done = max(self.done, first + len(x))

    def predicted(self, k: int, x: Tensor) -> Tensor:
        """The clean tokens ``[H, P, C]`` to be expected of an evaluation at a state ``[P, C]``."""
        if self.done == 0:
            return torch.tanh(self.slopes[k] * x).expand_as(self.clean[0])
        last = min(k, self.done - 1)
        level = self.clean[last].clamp(-CLIP, CLIP)
        if last < k:
            return torch.tanh(torch.atanh(level) + self.slopes[k] * x - self.slopes[last] * self.x[last])
        change = torch.tanh(torch.atanh(level) + self.slopes[k] * (x - self.x[k])) - level
        return self.clean[k] + self.share[k] * change


@torch.no_grad()
def sample_in_windows(
    evaluate: Evaluate,
    advance: Advance,
    start: Tensor,
    times: Tensor,
    *,
    window: int,
    tolerance: float,
    guidance: float = 1.0,
) -> tuple[Tensor, int]:
    """Sample one patch in sweeps over windows of ``window`` evaluations.

    Args:
        start: noisy tokens ``[P, C]`` at the first time.
        times: ``[K]`` of the head's evaluations.
        tolerance: how far a state may move and count as settled.

    Returns:
        The state ``[P, C]`` behind the last evaluation, whose sign is the patch; and the number of sweeps.
    """
    count, halves = len(times), 2 if guidance > 1 else 1
    clean = start.new_zeros(count, halves, *start.shape)
    known = Trajectory(clean[:, 0].clone(), clean, start.new_ones(count, halves, 1, 1), logit_slopes(times))
    states = [start] + [start] * count

    def redo(first: int, last: int) -> None:
        for k in range(first, min(last, count)):
            rows = known.predicted(k, states[k])
            states[k + 1] = advance(k, states[k], rows[-1] + guidance * (rows[0] - rows[-1]))

    reached, sweeps = 0, 0
    redo(0, window)
    while reached < count:
        ahead = torch.arange(reached, min(reached + window, count))
        x = torch.stack([states[k] for k in ahead.tolist()])
        known.evaluated(reached, x, evaluate(ahead, x))
        sweeps += 1
        redo(reached, reached + 2 * window)
        moved = [k for k in ahead.tolist()[1:] if (states[k] - known.x[k]).abs().max() > tolerance]
        reached = moved[0] if moved else reached + len(ahead)
    return states[count], sweeps
