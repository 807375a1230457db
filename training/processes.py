"""The processes that train together, which a launcher started and Accelerate connects; one where nothing did."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import GradientAccumulationPlugin
from torch import Tensor
from torch.distributed import DistError

from bitdance_edge.training.errors import TrainingError


def connect() -> PartialState:
    """Connect this process with the others that were started with it; on a machine without an accelerator by its CPUs.

    Raises:
        TrainingError: they cannot be connected.
    """
    launched = int(os.environ.get("LOCAL_RANK", "-1")) >= 0
    try:
        # Left to itself, Accelerate does not connect processes without an accelerator: each would train alone.
        return PartialState(cpu=launched and not torch.accelerator.is_available())
    except (RuntimeError, ValueError) as error:  # of torch.distributed: an address is missing, or nobody answers
        raise TrainingError(
            f"this process cannot be connected with the others ({_first_sentence(error)}); "
            "start them with: accelerate launch"
        ) from None


def accelerator(precision: str) -> Accelerator:
    """Make the accelerator of connected processes; accumulation is the recipe's, whatever the launcher was told.

    Args:
        precision: ``no`` (float32) or ``bf16``, as Accelerate names them.
    """
    connect()
    return Accelerator(mixed_precision=precision, gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1))


def mean_of_all(ours: Accelerator, value: Tensor) -> Tensor:
    """Return the mean of a value over all processes, which must all ask for it."""
    reduced = ours.reduce(value, reduction="mean")
    assert isinstance(reduced, Tensor)
    return reduced


def in_any(ours: Accelerator, flag: bool) -> bool:
    """Whether ``flag`` is set in one of the processes, which must all ask: so all learn it after the same step."""
    if ours.num_processes == 1:
        return flag
    return mean_of_all(ours, torch.tensor(float(flag), device=ours.device)).item() > 0


@contextmanager
def others_needed() -> Iterator[None]:
    """Say in one line that another process ended: whatever waits for it in the block fails.

    Raises:
        TrainingError: a connection to another process broke.
    """
    try:
        yield
    except RuntimeError as error:
        ours = PartialState()
        if ours.num_processes == 1 or not _of_connection(error):
            raise
        raise TrainingError(
            f"process {ours.process_index} of {ours.num_processes} lost its connection to another one, which may have "
            f"printed why ({_first_sentence(error)}); continue from the last saved state with --resume"
        ) from None


def _of_connection(error: RuntimeError) -> bool:
    return isinstance(error, DistError) or "gloo" in str(error)  # gloo raises plain RuntimeErrors


def _first_sentence(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].partition(". ")[0]
