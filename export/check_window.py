"""The check of the windowed sampler's stages: a window of two guided images that have reached different times."""

from collections.abc import Mapping

import torch
from torch import Tensor

from bitdance_edge.export.exported_stages import ExportedStages
from bitdance_edge.export.stage_error import StageError
from bitdance_edge.export.stages import Generator
from bitdance_edge.export.window_stages import AdvanceStage, ExtrapolateStage, SettleStage
from bitdance_edge.model.window import logit_slopes
from bitdance_edge.runtime.bundle.stage_names import StageName
from bitdance_edge.runtime.sampler import Schedule

DRAWS, ROWS, WINDOW, STEPS = 2, 4, 4, 12
REACHED, LAST_REACHED = (4, 11), (2, 10)  # the second window goes beyond the end
MOVED = 0.01  # states since they were evaluated


def check_window(
    model: Generator, exported: ExportedStages, errors: Mapping[str, StageError], generation: torch.Generator
) -> None:
    """Compare the three stages with their modules, the first with values of its own and each other with what follows.

    Raises:
        ExportError: a value of PyTorch's is not finite.
    """
    patch = model.config.tokens_per_step, model.config.bits
    indices = {
        "evaluations": torch.tensor([STEPS + 1]),
        "ahead": torch.arange(2 * WINDOW),
        "rows": torch.arange(ROWS) % DRAWS,
        "every": torch.arange(ROWS),
    }

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, *patch, generator=generation)

    schedule = Schedule.euler_maruyama(STEPS, model.config.time_shift)
    slopes = logit_slopes(torch.from_numpy(schedule.times))
    steps = torch.cat([torch.from_numpy(schedule.coefficients[:, :2]), slopes[:, None]], dim=1)
    keep = torch.tensor([[1.0, 0.0, 0.0]])
    x, clean = drawn(WINDOW, ROWS), drawn(WINDOW, ROWS).tanh()
    base, gain, slope, kept, offset = _compared(
        errors[StageName.EXTRAPOLATE],
        exported,
        ExtrapolateStage(),
        {
            "x": x,
            "clean": clean,
            "last_x": x + MOVED * drawn(WINDOW, ROWS),
            "last_clean": clean + MOVED * drawn(WINDOW, ROWS),
            "reached": torch.tensor(REACHED),
            "last_reached": torch.tensor(LAST_REACHED),
            "schedule": torch.cat([keep, steps, keep]),
            "added": drawn(STEPS + 3, DRAWS),
            "weights": torch.tensor([2.0, 2.0, -1.0, -1.0]),
            "free": (torch.arange(patch[0]) != 1).float(),
            **indices,
        },
    )[1:]
    halves = (ROWS // DRAWS, DRAWS)
    step = {"base": base[0].unflatten(0, halves), "gain": gain[0].unflatten(0, halves), "slope": slope[0]}
    inputs = {"x": drawn(DRAWS), **step, "keep": kept[0], "offset": offset[0]}
    _compared(errors[StageName.ADVANCE], exported, AdvanceStage(), inputs)
    states = drawn(2 * WINDOW, DRAWS)
    evaluated = states[:WINDOW].repeat(1, ROWS // DRAWS, 1, 1)
    evaluated[2:, 0] += 2 * MOVED
    widths = [tensor.shape[-1] for tensor in exported.stages[StageName.MODULATION].outputs]
    tables = tuple(torch.arange((STEPS + 1) * ROWS).view(-1, ROWS, 1, 1).expand(-1, -1, patch[0], n) for n in widths)
    inputs = {
        "states": states,
        "evaluated": evaluated,
        "reached": torch.tensor(REACHED),
        "tolerance": torch.tensor([MOVED]),
        **indices,
    }
    _compared(errors[StageName.SETTLE], exported, SettleStage(), inputs, tables)


def _compared(
    error: StageError,
    exported: ExportedStages,
    module: torch.nn.Module,
    inputs: Mapping[str, Tensor],
    tables: tuple[Tensor, ...] = (),
) -> tuple[Tensor, ...]:
    """Run a stage both ways; returns what PyTorch made."""
    names = [tensor.name for tensor in exported.stages[error.stage].inputs]
    made = module(*inputs.values(), *([tables] if tables else []))
    wanted = made if isinstance(made, tuple) else (made,)
    feeds = dict(zip(names, (value.numpy() for value in (*inputs.values(), *tables)), strict=True))
    for got, want in zip(exported.run(error.stage, feeds), wanted, strict=True):
        error.compare(got, want.numpy())
    return wanted
