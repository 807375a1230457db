"""The learning rate by step, the averaged weights, and the choice of weights that decay."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bitdance_edge.training.recipes import TrainingRecipe

# Embedding-like weights: with few gradients or a fixed input, decay would only shrink them.
UNDECAYED = ("proj_in", "cls_embedding", "query_token", "embed_tokens", "projector")


def learning_rate(recipe: TrainingRecipe, step: int) -> float:
    """Return the rate of a step: linear warm-up, constant for a share of the steps, then a half cosine to the last."""
    if step < recipe.warmup_steps:
        return recipe.learning_rate * (step + 1) / recipe.warmup_steps
    constant = recipe.constant_share
    progress = max(0.0, (step / recipe.steps - constant) / (1 - constant)) if constant < 1 else 0.0
    falling = 0.5 * (1 + math.cos(math.pi * progress))
    return recipe.learning_rate * (recipe.last_rate + (1 - recipe.last_rate) * falling)


def parameter_groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return AdamW's two groups: weights that decay; vectors, scalars and embedding-like weights, which do not."""
    groups: dict[bool, list[Tensor]] = {True: [], False: []}
    for name, parameter in trainable(network).items():
        decays = parameter.ndim > 1 and not any(part in UNDECAYED for part in name.split("."))
        groups[decays].append(parameter)
    return [{"params": groups[True], "weight_decay": weight_decay}, {"params": groups[False], "weight_decay": 0.0}]


def trainable(network: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}


class Average:
    """Exponential moving average of a network's trainable weights.

    The decay grows from 0.1 to its value over the first steps, so that the average forgets the initial weights.
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
        """Put the averaged weights into the network; its own are restored at the end."""
        own = {name: parameter.detach().clone() for name, parameter in trainable(self.network).items()}
        self.store()
        try:
            yield
        finally:
            copy_weights(self.network, own)

    def store(self) -> None:
        """Make the averaged weights the network's own."""
        copy_weights(self.network, self.weights)


@torch.no_grad()
def copy_weights(network: nn.Module, weights: dict[str, Tensor]) -> None:
    """Copy weights into the trainable parameters of the same names."""
    for name, parameter in trainable(network).items():
        parameter.copy_(weights[name])
