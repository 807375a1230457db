"""Low-rank additions to linear layers (LoRA, https://arxiv.org/abs/2106.09685): trained beside frozen weights."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Linear layers of backbone blocks and head; what embeds or projects bits is small and stays frozen.
TARGETS = ("backbone.layers.", "head.")


class LoraLinear(nn.Linear):
    """A frozen linear layer plus ``scale * lora_b @ lora_a``, of rank r; it starts as the layer alone."""

    def __init__(self, frozen: nn.Linear, rank: int, scale: float) -> None:
        super().__init__(frozen.in_features, frozen.out_features, bias=frozen.bias is not None, device="meta")
        self.weight, self.bias = frozen.weight, frozen.bias
        self.scale = scale
        device = frozen.weight.device
        self.lora_a = nn.Parameter(torch.empty(rank, frozen.in_features, device=device))
        self.lora_b = nn.Parameter(torch.zeros(frozen.out_features, rank, device=device))
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))

    def forward(self, input: Tensor) -> Tensor:
        low = F.linear(F.linear(input.to(self.lora_a.dtype), self.lora_a), self.lora_b)
        return super().forward(input) + (self.scale * low).to(input.dtype)


def add_lora(model: nn.Module, rank: int, alpha: float) -> None:
    """Freeze a generator and give its linear layers additions of ``rank``, scaled by ``alpha / rank``.

    Layers that are no larger than ``rank`` on one side stay as they are.
    """
    model.requires_grad_(False)
    found = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.startswith(TARGETS) and min(module.weight.shape) > rank
    ]
    for name in found:
        parent, _, child = name.rpartition(".")
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        setattr(model.get_submodule(parent), child, LoraLinear(layer, rank, alpha / rank))


def lora_layers(model: nn.Module) -> Iterator[tuple[str, LoraLinear]]:
    """Yield every layer with an addition, by its name."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, LoraLinear))


def merged(weight: Tensor, lora_a: Tensor, lora_b: Tensor, scale: float) -> Tensor:
    """Return ``weight + scale * lora_b @ lora_a``, computed in float32, in the weight's type."""
    return (weight.float() + scale * (lora_b.float() @ lora_a.float())).to(weight.dtype)
