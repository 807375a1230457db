"""Qwen3 as the text-to-image backbone (https://arxiv.org/abs/2505.09388), under its published key names.

As in ``backbone.py``, the modules know no cache and no mask: attention is a callable. There are more query heads than
key-value heads; ``Attend`` gets the key-value heads unrepeated.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bitdance_edge.model.backbone import Attend
from bitdance_edge.model.order import rotate_halves
from bitdance_edge.model.text_config import QwenConfig


class QwenAttention(nn.Module):
    def __init__(self, config: QwenConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.q_proj = nn.Linear(config.width, config.heads * config.head_dim, bias=False)
        self.k_proj = nn.Linear(config.width, config.kv_heads * config.head_dim, bias=False)
        self.v_proj = nn.Linear(config.width, config.kv_heads * config.head_dim, bias=False)
        self.o_proj = nn.Linear(config.heads * config.head_dim, config.width, bias=False)
        self.q_norm = nn.RMSNorm(config.head_dim, eps=config.norm_eps)
        self.k_norm = nn.RMSNorm(config.head_dim, eps=config.norm_eps)

    def forward(self, x: Tensor, layer: int, attend: Attend) -> Tensor:
        queries = self.q_norm(self._heads(self.q_proj(x))).transpose(1, 2)  # [R, H, T, d]
        keys = self.k_norm(self._heads(self.k_proj(x))).transpose(1, 2)  # [R, G, T, d]
        values = self._heads(self.v_proj(x)).transpose(1, 2)
        return self.o_proj(attend(layer, queries, keys, values).transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim))


class QwenMlp(nn.Module):
    def __init__(self, config: QwenConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.width, config.mlp_width, bias=False)
        self.up_proj = nn.Linear(config.width, config.mlp_width, bias=False)
        self.down_proj = nn.Linear(config.mlp_width, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class QwenLayer(nn.Module):
    def __init__(self, config: QwenConfig) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.self_attn = QwenAttention(config)
        self.post_attention_layernorm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.mlp = QwenMlp(config)

    def forward(self, x: Tensor, layer: int, attend: Attend) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), layer, attend)
        return x + self.mlp(self.post_attention_layernorm(x))


class QwenBackbone(nn.Module):
    """Language model over R rows, D wide, without the output layer over the vocabulary: no text is generated."""

    rotary_interleaved = False
    rotate = staticmethod(rotate_halves)

    def __init__(self, config: QwenConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocabulary, config.width)
        self.layers = nn.ModuleList(QwenLayer(config) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.width, eps=config.norm_eps)

    def initialize(self) -> None:
        """Draw the weights before training."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)

    def rotary(self, length: int) -> tuple[Tensor, Tensor]:
        """Return cosines and sines of positions 0 to ``length - 1``, float32 ``[length, head_dim / 2]`` each."""
        pairs = torch.arange(0, self.config.head_dim, 2, dtype=torch.float32, device="cpu")
        frequencies = 1.0 / self.config.rotary_base ** (pairs / self.config.head_dim)
        angles = torch.arange(length, dtype=torch.float32, device="cpu")[:, None] * frequencies
        return angles.cos(), angles.sin()

    def hidden(self, embeddings: Tensor, attend: Attend) -> Tensor:
        """Run embeddings ``[R, T, D]`` through all layers and the final norm."""
        for layer, block in enumerate(self.layers):
            embeddings = block(embeddings, layer, attend)
        return self.norm(embeddings)
