"""How the backbone's cache and attention are written down as ONNX operators.

``kv24`` (opset 24) uses the operators that name what they do: TensorScatter for the cache, RotaryEmbedding, Attention
and RMSNormalization (https://onnx.ai/onnx/operators). ``portable20`` (opset 20) spells the same out in older
operators, for TensorRT before 10.15 and other consumers. Names and shapes of inputs and outputs are the same.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bitdance_edge.model.order import rotate

# (queries or keys [R, H, T, d], cosines [S, d/2], sines [S, d/2], positions [R, T]) -> rotated
Rotate = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
# (cache [R, H, S, d], new entries [R, H, T, d], first slot [R]) -> cache
UpdateCache = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Profile:
    opset: int
    rotate: Rotate
    update_cache: UpdateCache


def _rotary_embedding(x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor) -> Tensor:
    return torch.onnx.ops.rotary_embedding(x, cos, sin, positions, interleaved=True)


def _tensor_scatter(cache: Tensor, new: Tensor, first_slot: Tensor) -> Tensor:
    # No PyTorch function exports to this operator, so it is written symbolically; it exists only inside an export.
    return torch.onnx.ops.symbolic(
        "TensorScatter",
        (cache, new, first_slot),
        {"axis": 2, "mode": "linear"},
        dtype=cache.dtype,
        shape=cache.shape,
        version=24,
    )


def _rotate_by_table(x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor) -> Tensor:
    return rotate(x, cos[positions][:, None], sin[positions][:, None])


def _scatter_elements(cache: Tensor, new: Tensor, first_slot: Tensor) -> Tensor:
    slots = first_slot[:, None] + torch.arange(new.shape[2])  # [R, T]
    return cache.scatter(2, slots[:, None, :, None].expand_as(new), new)


PROFILES = {
    "kv24": Profile(24, _rotary_embedding, _tensor_scatter),
    "portable20": Profile(20, _rotate_by_table, _scatter_elements),
}
