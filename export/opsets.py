"""The ONNX operators of the backbone's cache, rotation and attention, by opset.

Opset 24 has operators that name what they do: TensorScatter for the cache, RotaryEmbedding, Attention and
RMSNormalization (https://onnx.ai/onnx/operators). Opset 20 writes the same in older operators, for TensorRT before
10.15 and other consumers. Names and shapes of inputs and outputs are the same in both.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from bitdance_edge.model.order import rotate, rotate_halves

# (queries or keys [R, H, T, d], cosines [S, d/2], sines [S, d/2], positions [R, T], interleaved pairs) -> rotated
Rotate = Callable[[Tensor, Tensor, Tensor, Tensor, bool], Tensor]
# (cache [R, H, S, d], new entries [R, H, T, d], first slot [R]) -> cache
UpdateCache = Callable[[Tensor, Tensor, Tensor], Tensor]
# (queries [R, H, T, d], keys and values [R, G, S, d] with H a multiple of G, mask [R, 1, T, S]) -> [R, H, T, d]
Attention = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class CacheOperators:
    rotate: Rotate
    update_cache: UpdateCache
    attend: Attention


def _rotary_embedding(x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, interleaved: bool) -> Tensor:
    return torch.onnx.ops.rotary_embedding(x, cos, sin, positions, interleaved=interleaved)


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


def _grouped_attention(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    grouped = queries.shape[1] > keys.shape[1]  # the exporter refuses groups of one
    return F.scaled_dot_product_attention(queries, keys, values, mask, enable_gqa=grouped)


def _rotate_by_table(x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, interleaved: bool) -> Tensor:
    turn = rotate if interleaved else rotate_halves
    return turn(x, cos[positions][:, None], sin[positions][:, None])


def _repeated_attention(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """Attention without groups: each key-value head is repeated for its queries."""
    group = queries.shape[1] // keys.shape[1]
    if group > 1:
        keys, values = keys.repeat_interleave(group, dim=1), values.repeat_interleave(group, dim=1)
    return F.scaled_dot_product_attention(queries, keys, values, mask)


def _scatter_elements(cache: Tensor, new: Tensor, first_slot: Tensor) -> Tensor:
    slots = first_slot[:, None] + torch.arange(new.shape[2])  # [R, T]
    return cache.scatter(2, slots[:, None, :, None].expand_as(new), new)


DEFAULT_OPSET = 24
OPSETS = {
    24: CacheOperators(_rotary_embedding, _tensor_scatter, _grouped_attention),
    20: CacheOperators(_rotate_by_table, _scatter_elements, _repeated_attention),
}
