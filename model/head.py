"""The diffusion head: from a noisy patch, its time and its condition, the clean patch (paper section 3.3).

One module for every patch size: P = 1 is a residual MLP, P > 1 adds full attention among the tokens of the patch.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bitdance_edge.model.backbone import GatedMlp, swiglu
from bitdance_edge.model.config import HeadConfig

TIME_FEATURES = 256


def timestep_embedding(times: Tensor) -> Tensor:
    """Return the sinusoids of ``1000 * times``: ``[N]`` to float32 ``[N, 256]``, cosines first."""
    half = TIME_FEATURES // 2
    exponents = torch.arange(half, dtype=torch.float32, device=times.device) / half
    frequencies = torch.exp(-math.log(10_000.0) * exponents)
    angles = 1000.0 * times.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class TimeEmbedding(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(TIME_FEATURES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, times: Tensor) -> Tensor:
        """Embed times ``[N]`` as ``[N, W]``; the sinusoids are float32 in a network of any dtype."""
        return self.mlp(timestep_embedding(times).to(next(self.parameters()).dtype))


class HeadAttention(nn.Module):
    """Attention among the P tokens of a patch, which are P consecutive rows of ``x`` ``[B * P, W]``."""

    def __init__(self, width: int, head_dim: int, tokens: int) -> None:
        super().__init__()
        self.head_dim, self.tokens = head_dim, tokens
        self.wqkv = nn.Linear(width, 3 * width)
        self.wo = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.wqkv(x).unflatten(0, (-1, self.tokens)).unflatten(-1, (3, -1, self.head_dim))  # [B, P, 3, H, d]
        queries, keys, values = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each [B, H, P, d]
        mixed = F.scaled_dot_product_attention(queries, keys, values)
        return self.wo(mixed.transpose(1, 2).flatten(2).flatten(0, 1))


class MlpBlock(GatedMlp):
    """Residual block of the one-token head; adaLN gives scale, shift and gate."""

    MODULATIONS = 3

    def __init__(self, config: HeadConfig) -> None:
        super().__init__(config.width, int(1.5 * config.width), config.width, bias=True)
        self.norm = nn.LayerNorm(config.width, eps=1e-6)

    def forward(self, x: Tensor, modulation: tuple[Tensor, ...]) -> Tensor:  # type: ignore[override]
        scale, shift, gate = modulation
        return x + super().forward(self.norm(x) * (1 + scale) + shift) * gate


class TransformerBlock(nn.Module):
    """Residual block of the patch head; adaLN gives scale, shift and gate for attention, then for the MLP."""

    MODULATIONS = 6

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        width, hidden = config.width, int(1.5 * config.width)
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = HeadAttention(width, config.head_dim, config.tokens_per_step)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        if config.swiglu:
            self.w1 = nn.Linear(width, 2 * hidden)
            self.w2 = nn.Linear(hidden, width)
        else:
            self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, width))

    def forward(self, x: Tensor, modulation: tuple[Tensor, ...]) -> Tensor:
        scale1, shift1, gate1, scale2, shift2, gate2 = modulation
        x = x + self.attn(self.norm1(x) * (1 + scale1) + shift1) * gate1
        hidden = self.norm2(x) * (1 + scale2) + shift2
        hidden = self.mlp(hidden) if hasattr(self, "mlp") else self.w2(swiglu(self.w1(hidden)))
        return x + hidden * gate2


class FinalLayer(nn.Module):
    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.ada_ln_modulation = nn.Linear(width, 2 * width)
        self.linear = nn.Linear(width, outputs)

    def forward(self, x: Tensor, modulation: tuple[Tensor, ...]) -> Tensor:
        scale, shift = modulation
        return self.linear(self.norm_final(x) * (1 + scale) + shift)


class DiffusionHead(nn.Module):
    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        self.config = config
        block = MlpBlock if config.tokens_per_step == 1 else TransformerBlock
        self.modulations = block.MODULATIONS
        self.time_embed = TimeEmbedding(config.width)
        self.cond_embed = nn.Linear(config.condition_width, config.width)
        self.input_proj = nn.Linear(config.bits, config.width)
        self.res_blocks = nn.ModuleList(block(config) for _ in range(config.blocks))
        self.ada_ln_blocks = nn.ModuleList(
            nn.Linear(config.width, block.MODULATIONS * config.width) for _ in range(config.adaln_groups)
        )
        self.final_layer = FinalLayer(config.width, config.bits)

    def initialize(self) -> None:
        """Draw the weights before training: the head starts as zero, so that it first predicts the mean token."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for module in self.time_embed.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
        for module in (*self.ada_ln_blocks, self.final_layer.ada_ln_modulation, self.final_layer.linear):
            for parameter in module.parameters():
                nn.init.zeros_(parameter)

    def modulate(self, embedding: Tensor) -> tuple[Tensor, ...]:
        """Compute adaLN's scales, shifts and gates of each group of blocks, then of the final layer.

        ``embedding`` ``[..., W]`` is time plus condition. Each result is ``[..., n * W]``: n modulations, concatenated.
        They do not depend on the noisy tokens.
        """
        y = F.silu(embedding)
        return tuple(linear(y) for linear in (*self.ada_ln_blocks, self.final_layer.ada_ln_modulation))

    def denoise(self, x: Tensor, modulations: tuple[Tensor, ...]) -> Tensor:
        """Predict clean tokens ``[B, P, C]`` from noisy ones ``[B, P, C]`` and modulations ``[B, P, n * W]``."""
        shape = x.shape
        x = self.input_proj(x.flatten(0, 1))  # as a matrix: runtimes fuse the bias into its product
        per_group = self.config.blocks_per_adaln
        *groups, last = modulations
        for group, modulation in enumerate(groups):
            parts = modulation.flatten(0, 1).chunk(self.modulations, dim=-1)
            for block in self.res_blocks[group * per_group : (group + 1) * per_group]:
                x = block(x, parts)
        x = self.final_layer(x, last.flatten(0, 1).chunk(2, dim=-1)).view(shape)
        return 2 * torch.sigmoid(x) - 1 if self.config.bounded else x

    def forward(self, x: Tensor, times: Tensor, condition: Tensor) -> Tensor:
        """Predict clean tokens ``[B, P, C]`` from noisy ones ``[B, P, C]``, times ``[B]``, condition ``[B, P, D]``."""
        return self.denoise(x, self.modulate(self.time_embed(times)[:, None] + self.cond_embed(condition)))
