"""The stages of the windowed sampler (``model/window.py``), as modules to be traced; none has weights.

The head evaluates W times of R rows in one launch as W * R draws of its own. These stages do the rest of a sweep: how
the head's predictions change where the states move, one step of the recurrence, and how far the states have settled.
They are three because a window of any size then takes the same graphs: the recurrence is as many launches of one step,
without a loop inside a graph, which a CUDA graph cannot hold. Indices are inputs: those that a graph computes would be
made on the host.
"""

import torch
from torch import Tensor, nn

from bitdance_edge.export.stages import last_rows
from bitdance_edge.model.window import CLIP, LARGEST_SHARE, LEAST_CHANGE


def logit(clean: Tensor) -> Tensor:
    """The inverse of tanh, by a logarithm: ONNX Runtime has no Atanh on CUDA."""
    return 0.5 * torch.log((1 + clean) / (1 - clean))


class SettleStage(nn.Module):
    """States ``[2*W, B, P, C]`` from ``reached`` ``[B]`` on, to what has settled of them and the next window.

    ``evaluated`` ``[W, R, P, C]`` are the states as the head has seen them; before ``reached`` 0 it has seen none.
    ``tables`` ``[N, R, P, n*W]`` hold the modulations of all evaluations, ``rows`` ``[R]`` says which draw a row is of,
    ``ahead`` and ``every`` count from 0. The state that all have reached is the result once ``settled`` is the number
    of evaluations.
    """

    def forward(
        self,
        states: Tensor,
        evaluated: Tensor,
        reached: Tensor,
        tolerance: Tensor,
        evaluations: Tensor,
        ahead: Tensor,
        rows: Tensor,
        every: Tensor,
        tables: tuple[Tensor, ...],
    ) -> tuple[Tensor, ...]:
        window, draws = evaluated.shape[0], states.shape[1]
        offsets = ahead[:window]
        moved = (states[:window] - evaluated[:, :draws]).abs().amax((2, 3))  # [W, B]
        unsettled = ((moved > tolerance) | (reached < 0)) & (offsets > 0)[:, None]
        steps = torch.where(unsettled, offsets[:, None], offsets[-1:] + 1).amin(0)
        settled = torch.minimum(reached + steps, evaluations)
        at = (settled - reached)[None] + offsets[:, None]  # [W, B]
        following = states[at, every[:draws]]  # [W, B, P, C]
        times = torch.minimum(settled.index_select(0, rows)[None] + offsets[:, None], evaluations - 1)  # [W, R]
        modulations = (table[times, every] for table in tables)
        return settled, following[0], following.index_select(1, rows), *modulations


class ExtrapolateStage(nn.Module):
    """The head's predictions ``[W, R, P, C]`` at a window's states, to what a step of the recurrence takes.

    2*W steps follow: W whose predictions are corrected for how far their state has moved since, by as much of the
    analytic change as came true between the last two sweeps, and W that carry on the last logit. What was known of the
    window before is ``last_x`` and ``last_clean`` of the window at ``last_reached``; below 0 there was none.
    ``schedule`` ``[K, 3]`` has A, B and the slope of the logit for each step, the first and last of which keep the
    state; ``added`` ``[K, B, P, C]`` what a step adds of its own: noise, or a known token where ``free`` ``[P]`` is 0.
    """

    def forward(
        self,
        x: Tensor,
        clean: Tensor,
        last_x: Tensor,
        last_clean: Tensor,
        reached: Tensor,
        last_reached: Tensor,
        schedule: Tensor,
        added: Tensor,
        weights: Tensor,
        free: Tensor,
        evaluations: Tensor,
        ahead: Tensor,
        rows: Tensor,
        every: Tensor,
    ) -> tuple[Tensor, ...]:
        window, draws = x.shape[0], added.shape[1]
        offsets = ahead[:window]
        steps = torch.minimum(reached[None] + ahead[:, None] + 1, evaluations + 1)  # [2*W, B], counted in the schedule
        a, b, s = (schedule[steps][:, :, i, None, None] for i in range(3))  # each [2*W, B, 1, 1]
        slopes = s.index_select(1, rows)  # [2*W, R, 1, 1]
        clipped = clean.clamp(-CLIP, CLIP)
        level = logit(clipped)

        shift = (reached - last_reached).index_select(0, rows)[None] + offsets[:, None]  # [W, R]
        known = (shift < offsets[-1:] + 1) & ((last_reached >= 0) & (reached >= last_reached)).index_select(0, rows)
        before = shift.clamp_min(0).minimum(offsets[-1:])
        change = clipped - torch.tanh(level - slopes[:window] * (x - last_x[before, every]))
        size = (change * change).sum((2, 3), keepdim=True)
        came_true = ((clean - last_clean[before, every]) * change).sum((2, 3), keepdim=True) / size.clamp_min(
            LEAST_CHANGE
        )
        fitted = known[:, :, None, None] & (size > LEAST_CHANGE)
        share = torch.where(fitted, came_true, torch.ones_like(came_true)).clamp(0.0, LARGEST_SHARE)  # [W, R, 1, 1]

        base = level - slopes[:window] * x
        constant = (clean - share * clipped) * weights[:, None, None]
        guided = (last_rows(every, 0, draws) != every[:draws]).float()  # else first and last rows are the same
        mixed = constant[:, :draws] + last_rows(constant, 1, draws) * guided[:, None, None]
        none = torch.zeros_like(mixed)
        scale = b * free[:, None]  # [2*W, B, P, 1]
        return (
            x[0, :draws],
            torch.cat([base, base[-1:].expand_as(base)]),
            torch.cat([share, torch.ones_like(share)]) * weights[:, None, None] * scale.index_select(1, rows),
            s,
            a * free[:, None],
            torch.cat([mixed, none]) * scale + added[steps, every[:draws]],
        )


class AdvanceStage(nn.Module):
    """One step of the recurrence, ``[B, P, C]``: H predictions ``[H, B, P, C]`` follow the state, weighted by gain."""

    def forward(self, x: Tensor, base: Tensor, gain: Tensor, slope: Tensor, keep: Tensor, offset: Tensor) -> Tensor:
        return keep * x + offset + (gain * torch.tanh(base + slope * x)).sum(0)
