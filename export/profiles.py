"""How the backbone's cache and attention are written down as ONNX operators.

``kv24`` (opset 24) uses the operators that name what they do: TensorScatter for the cache, RotaryEmbedding, Attention
and RMSNormalization (https://onnx.ai/onnx/operators). ``portable20`` (opset 20) spells the same out in older
operators, for TensorRT before 10.15 and other consumers. ``cpu24`` is kv24 with the linear layers of backbone and head
and the decoder's convolutions in the forms that ONNX Runtime runs fastest on a CPU in float32; ``cpu24q`` is kv24 with
that decoder alone, for bundles whose other stages are to be quantised. Names and shapes of inputs and outputs are the
same in all.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from bitdance_edge.export.operators import CPU_DECODER, CPU_TRANSLATIONS, TRANSLATIONS, Translations
from bitdance_edge.model.order import rotate, rotate_halves

# (queries or keys [R, H, T, d], cosines [S, d/2], sines [S, d/2], positions [R, T], interleaved pairs) -> rotated
Rotate = Callable[[Tensor, Tensor, Tensor, Tensor, bool], Tensor]
# (cache [R, H, S, d], new entries [R, H, T, d], first slot [R]) -> cache
UpdateCache = Callable[[Tensor, Tensor, Tensor], Tensor]
# (queries [R, H, T, d], keys and values [R, G, S, d] with H a multiple of G, mask [R, 1, T, S]) -> [R, H, T, d]
Attention = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Profile:
    opset: int
    rotate: Rotate
    update_cache: UpdateCache
    attend: Attention
    stage_translations: Mapping[str, Translations] = field(default_factory=dict)

    def translations(self, stage: str) -> dict[Callable, Callable]:
        """Operators of PyTorch that a stage's graph has in other forms than the exporter's."""
        return {**TRANSLATIONS, **self.stage_translations.get(stage, {})}


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
    """The same where attention knows no groups: each key-value head is repeated for its queries."""
    group = queries.shape[1] // keys.shape[1]
    if group > 1:
        keys, values = keys.repeat_interleave(group, dim=1), values.repeat_interleave(group, dim=1)
    return F.scaled_dot_product_attention(queries, keys, values, mask)


def _scatter_elements(cache: Tensor, new: Tensor, first_slot: Tensor) -> Tensor:
    slots = first_slot[:, None] + torch.arange(new.shape[2])  # [R, T]
    return cache.scatter(2, slots[:, None, :, None].expand_as(new), new)


PROFILES = {
    "kv24": Profile(24, _rotary_embedding, _tensor_scatter, _grouped_attention),
    "cpu24": Profile(24, _rotary_embedding, _tensor_scatter, _grouped_attention, CPU_TRANSLATIONS),
    "cpu24q": Profile(24, _rotary_embedding, _tensor_scatter, _grouped_attention, CPU_DECODER),
    "portable20": Profile(20, _rotate_by_table, _scatter_elements, _repeated_attention),
}
