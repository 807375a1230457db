"""What changes with the step number: the learning rate, the averaged weights; and which weights decay."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bitdance_edge.training.recipes import Recipe

# Embedding-like weights that would only shrink under decay: they see few gradients, or stand for a fixed input.
UNDECAYED = ("proj_in", "cls_embedding", "query_token", "embed_tokens", "projector")


def learning_rate(recipe: Recipe, step: int) -> float:
    """Linear warm-up, constant until half of the steps, then a half cosine that ends at zero."""
    if step < recipe.warmup_steps:
        return recipe.learning_rate * (step + 1) / recipe.warmup_steps
    progress = max(0.0, 2 * step / recipe.steps - 1)
    return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def parameter_groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """AdamW's two groups: weights that decay; vectors, scalars and embedding-like weights that do not."""
    groups: dict[bool, list[Tensor]] = {True: [], False: []}
    for name, parameter in trainable(network).items():
        decays = parameter.ndim > 1 and not any(part in UNDECAYED for part in name.split("."))
        groups[decays].append(parameter)
    return [{"params": groups[True], "weight_decay": weight_decay}, {"params": groups[False], "weight_decay": 0.0}]


def trainable(network: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}


class Average:
    """Exponential moving average of a network's trainable weights.

    The decay grows from about 0.1 to its value over the first steps, so that the average forgets the initial weights.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network = network
        self.decay = decay
        self.weights = {name: parameter.detach().clone() for name, parameter in trainable(network).items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, parameter in trainable(self.network).items():
            self.weights[name].lerp_(parameter.detach(), 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The network with the averaged weights in place of its own, which come back at the end."""
        own = {name: parameter.detach().clone() for name, parameter in trainable(self.network).items()}
        self.store()
        try:
            yield
        finally:
            put(self.network, own)

    def store(self) -> None:
        """Make the averaged weights the network's own."""
        put(self.network, self.weights)


@torch.no_grad()
def put(network: nn.Module, weights: dict[str, Tensor]) -> None:
    """Copy weights into the trainable parameters of the same names."""
    for name, parameter in trainable(network).items():
        parameter.copy_(weights[name])
