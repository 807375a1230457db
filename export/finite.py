"""The first module of a PyTorch model whose output is not finite."""

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def first_not_finite(model: nn.Module) -> Iterator[list[str]]:
    """Give a list that holds the name of the first module, if any, whose output has NaN or an infinite value."""
    found: list[str] = []
    with ExitStack() as hooks:
        for name, module in model.named_modules():
            hooks.callback(module.register_forward_hook(partial(_note, found, name)).remove)
        yield found


def _note(found: list[str], name: str, _module: nn.Module, _inputs: Any, output: Any) -> None:
    # Modules end before those that hold them, so the first is the innermost.
    if not found and isinstance(output, Tensor) and output.is_floating_point() and output.numel():
        low, high = torch.aminmax(output)
        if not (math.isfinite(low) and math.isfinite(high)):
            found.append(name)
