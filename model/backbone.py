"""Class-conditional transformer that turns a class and the tokens so far into the condition of the next patch.

The modules know no cache and no mask: attention is a callable (``Attend``), so that training, cached decoding and each
exported form run the same modules.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bitdance_edge.model.class_config import ROTARY_BASE, GeneratorConfig
from bitdance_edge.model.order import rotary_table, rotate

# (layer, queries, keys, values), each [R, H, T, d] -> attended values [R, H, T, d]
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]


def swiglu(hidden: Tensor) -> Tensor:
    """silu(first half) * second half, along the last axis."""
    gate, value = hidden.chunk(2, dim=-1)
    return F.silu(gate) * value


class GatedMlp(nn.Module):
    """Linear to twice the hidden size, SwiGLU, Linear."""

    def __init__(self, inputs: int, hidden: int, outputs: int, bias: bool) -> None:
        super().__init__()
        self.w1 = nn.Linear(inputs, 2 * hidden, bias=bias)
        self.w2 = nn.Linear(hidden, outputs, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(swiglu(self.w1(x)))


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.wqkv = nn.Linear(width, 3 * width, bias=False)
        self.wo = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, layer: int, attend: Attend) -> Tensor:
        qkv = self.wqkv(x).unflatten(-1, (3, self.heads, -1))  # [R, T, 3, H, d]
        queries, keys, values = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each [R, H, T, d]
        return self.wo(attend(layer, queries, keys, values).transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        hidden = 256 * -(-int(2 / 3 * 4 * width) // 256)  # rounded up to a multiple of 256
        self.attention_norm = nn.RMSNorm(width, eps=1e-6)
        self.attention = Attention(width, heads)
        self.ffn_norm = nn.RMSNorm(width, eps=1e-6)
        self.feed_forward = GatedMlp(width, hidden, width, bias=False)

    def forward(self, x: Tensor, layer: int, attend: Attend) -> Tensor:
        x = x + self.attention(self.attention_norm(x), layer, attend)
        return x + self.feed_forward(self.ffn_norm(x))


class ClassBackbone(nn.Module):
    """Transformer over R rows, D wide, with P tokens a step; R is the images, twice that under guidance.

    Conditional rows come first.
    """

    cos: Tensor
    sin: Tensor
    rotary_interleaved = True
    rotate = staticmethod(rotate)

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.cls_embedding = nn.Embedding(config.num_classes + 1, config.class_tokens * width)
        if config.tokens_per_step > 1:
            self.query_token = nn.Parameter(torch.randn(1, config.tokens_per_step - 1, width) * 0.02)
        self.proj_in = GatedMlp(config.bits, int(1.5 * width), width, bias=True)
        self.emb_norm = nn.RMSNorm(width, eps=1e-6)
        self.layers = nn.ModuleList(Block(width, config.heads) for _ in range(config.layers))
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.pos_for_diff = nn.Embedding(config.grid**2, width)
        patch_side = int(config.tokens_per_step**0.5) if config.patch_order else 1
        with torch.device("cpu"):  # real values even where the weights are built on the meta device
            cos, sin = rotary_table(config.grid, config.prompt_tokens, config.head_dim, ROTARY_BASE, patch_side)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def initialize(self) -> None:
        """Draw the weights as the reference does before training."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
                if isinstance(module, nn.Linear) and module.bias is not None:
                    nn.init.zeros_(module.bias)

    def embed_classes(self, classes: Tensor) -> Tensor:
        """Embed class ids int64 ``[R]`` (``num_classes``: none) as the prompt ``[R, class_tokens + P - 1, D]``."""
        prompt = self.cls_embedding(classes).unflatten(1, (self.config.class_tokens, -1))
        if self.config.tokens_per_step > 1:
            prompt = torch.cat([prompt, self.query_token.expand(prompt.shape[0], -1, -1)], dim=1)
        return self.emb_norm(prompt)

    def embed_tokens(self, tokens: Tensor) -> Tensor:
        """Turn bits ``[R, T, C]`` of -1 and +1 into embeddings ``[R, T, D]``."""
        return self.emb_norm(self.proj_in(tokens))

    def rotary(self, length: int) -> tuple[Tensor, Tensor]:
        """Return cosines and sines of the first ``length`` positions, float32 ``[length, head_dim / 2]`` each."""
        return self.cos[:length], self.sin[:length]

    def hidden(self, embeddings: Tensor, attend: Attend) -> Tensor:
        """Run embeddings ``[R, T, D]`` through all layers and the final norm."""
        for layer, block in enumerate(self.layers):
            embeddings = block(embeddings, layer, attend)
        return self.norm(embeddings)

    def position_term(self, patch: Tensor) -> Tensor:
        """Return what is added to the head's condition at one patch: ``patch`` int64 ``[1]`` to ``[P, D]``."""
        tokens = self.config.tokens_per_step
        return self.pos_for_diff(patch * tokens + torch.arange(tokens, device=patch.device))

    def forward(self, classes: Tensor, tokens: Tensor) -> Tensor:
        """Return every token's teacher-forced condition ``[B, h*w, D]`` of classes ``[B]`` and bits ``[B, h*w, C]``."""
        config = self.config
        inputs = self.embed_tokens(tokens[:, : -config.tokens_per_step])
        sequence = torch.cat([self.embed_classes(classes), inputs], dim=1)
        mask = block_causal_mask(config.class_tokens - 1, config.grid**2, config.tokens_per_step).to(sequence.device)
        length = sequence.shape[1]
        cos, sin = self.cos[:length], self.sin[:length]

        def attend(_layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(rotate(queries, cos, sin), rotate(keys, cos, sin), values, mask)

        hidden = self.hidden(sequence, attend)[:, -(config.grid**2) :]
        return hidden + self.pos_for_diff.weight


def block_causal_mask(causal: int, blocked: int, block: int) -> Tensor:
    """Return the attention mask, bool ``[T, T]`` with T = causal + blocked; True where a token (row) sees another.

    The first ``causal`` tokens see themselves and those before them. The others form blocks of ``block`` tokens, which
    see their own block and everything before it. The first block is the last class token and the queries.
    """
    index = torch.arange(causal + blocked)
    last_seen = torch.where(index < causal, index, causal + (index - causal) // block * block + block - 1)
    return index[None, :] <= last_seen[:, None]


class Backbone(Protocol):
    """The part of either backbone that a cache uses."""

    def rotary(self, length: int) -> tuple[Tensor, Tensor]: ...

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor: ...

    def hidden(self, embeddings: Tensor, attend: Attend) -> Tensor: ...


class GrowingCache:
    """Keys and values of the steps so far, concatenated: the plain path that faster caches are checked against."""

    def __init__(self, tokens_per_step: int) -> None:
        self.tokens = tokens_per_step
        self.layers: list[tuple[Tensor, Tensor]] = []
        self.position = 0

    def step(self, backbone: Backbone, embeddings: Tensor) -> Tensor:
        """Run ``[R, T, D]`` after the cached positions and return the last P hidden states, ``[R, P, D]``."""
        length = embeddings.shape[1]
        cos, sin = (
            table[self.position :].to(embeddings.device, embeddings.dtype)
            for table in backbone.rotary(self.position + length)
        )
        mask = None  # after the prompt every new token sees all others
        if self.position == 0:
            mask = block_causal_mask(length - self.tokens, self.tokens, self.tokens).to(embeddings.device)

        def attend(layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            keys = backbone.rotate(keys, cos, sin)
            if layer < len(self.layers):
                keys = torch.cat([self.layers[layer][0], keys], dim=2)
                values = torch.cat([self.layers[layer][1], values], dim=2)
                self.layers[layer] = (keys, values)
            else:
                self.layers.append((keys, values))
            queries = backbone.rotate(queries, cos, sin)
            return F.scaled_dot_product_attention(queries, keys, values, mask, enable_gqa=True)

        hidden = backbone.hidden(embeddings, attend)[:, -self.tokens :]
        self.position += length
        return hidden
