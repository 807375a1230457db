"""What weights must be: dense floating-point numbers, all of them finite."""

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from bitdance_edge.model.errors import ModelError
from bitdance_edge.model.tensor_file import FLOATS, StoredTensor

PART = 1 << 24  # values looked at once: a table of a large model would take its size again


def require_weights(weights: Mapping[str, Tensor | StoredTensor], source: Path) -> None:
    """Check weights by their key in the file ``source``.

    Raises:
        ModelError: a weight is not of ``FLOATS``, is not stored value by value, or has a value that is not finite.
    """
    for key, weight in weights.items():
        require_floats(key, weight, source)
        require_finite(key, weight, source)


def require_floats(key: str, weight: Tensor | StoredTensor, source: Path) -> None:
    """Check how a weight is stored, without reading it; arguments and errors are those of ``require_weights``."""
    stored = weight.stored if isinstance(weight, StoredTensor) else str(weight.dtype).removeprefix("torch.")
    if weight.dtype not in FLOATS.values():
        raise ModelError(
            f"{source}: {key} is stored as {stored}; weights are float64, float32, float16 or bfloat16: use the "
            "checkpoint that was not quantised"
        )
    if isinstance(weight, StoredTensor):
        return
    if weight.layout != torch.strided or weight.is_meta:
        kind = "has no values" if weight.is_meta else f"is stored as {weight.layout}"
        raise ModelError(f"{source}: {key} {kind}; save it as a dense tensor")
    if weight.untyped_storage().nbytes() < weight.numel() * weight.element_size():
        raise ModelError(f"{source}: {key} has fewer values than its shape {list(weight.shape)}; save a copy of it")


def require_finite(key: str, weight: Tensor | StoredTensor, source: Path, dtype: torch.dtype = torch.float32) -> None:
    """Read a weight's values, part by part, and refuse those that ``dtype`` cannot hold.

    Raises:
        ModelError: a value is NaN, infinite, or larger than ``dtype``'s largest.
    """
    values = (weight.read() if isinstance(weight, StoredTensor) else weight).detach()
    largest = torch.finfo(dtype).max
    for part in values.reshape(-1).split(PART):
        low, high = (float(bound) for bound in torch.aminmax(part))
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ModelError(
                f"{source}: {key} has values that are not finite; the checkpoint is damaged: copy it again"
            )
        if max(-low, high) > largest:
            name = str(dtype).removeprefix("torch.")
            raise ModelError(
                f"{source}: {key} has values up to {max(-low, high):.3g}; {name} holds at most {largest:.5g}: choose "
                "an element type with a larger range, or another checkpoint"
            )
