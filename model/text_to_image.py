"""The whole text-to-image model: tokenizer, language model, projector and head, with the plain way to sample and train.

Knows token ids, not text: prompts come as ids (``prompt.py``).
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bitdance_edge.model.backbone import GrowingCache, block_causal_mask
from bitdance_edge.model.head import DiffusionHead
from bitdance_edge.model.losses import flow_loss, training_times
from bitdance_edge.model.order import latent_to_sequence, sequence_to_latent, sinusoids
from bitdance_edge.model.qwen import QwenBackbone
from bitdance_edge.model.sampler import patch_guidance, sample_patch
from bitdance_edge.model.text_config import TextToImageConfig
from bitdance_edge.model.tokenizer import Tokenizer, quantize


class Projector(nn.Module):
    """MLP from bits ``[..., C]`` to the language model's width ``[..., D]``."""

    def __init__(self, bits: int, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(bits, width)
        self.fc2 = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(tokens), approximate="tanh"))


class TextToImage(nn.Module):
    """B images of ``across`` patches a row; P tokens a patch, C bits a token, D the width of the language model."""

    axis: Tensor

    def __init__(self, config: TextToImageConfig) -> None:
        super().__init__()
        self.config = config
        self.tokenizer = Tokenizer(config.tokenizer)
        self.backbone = QwenBackbone(config.backbone)
        self.projector = Projector(config.bits, config.backbone.width)
        self.head = DiffusionHead(config.head)
        with torch.device("cpu"):  # real values even where the weights are built on the meta device
            axis = sinusoids(config.largest_side, config.backbone.width // 2)
        self.register_buffer("axis", axis, persistent=False)

    @property
    def patch_side(self) -> int:
        return self.config.patch_side

    def initialize(self) -> None:
        """Draw the weights of language model, projector and head before training; those of the tokenizer stay."""
        self.backbone.initialize()
        self.head.initialize()
        for linear in (self.projector.fc1, self.projector.fc2):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def to_sequence(self, latent: Tensor) -> Tensor:
        """Turn bits ``[B, C, h, w]`` into ``[B, h*w, C]``, in generation order."""
        return latent_to_sequence(latent, self.patch_side)

    def to_latent(self, sequence: Tensor, height: int, width: int) -> Tensor:
        """Turn bits ``[B, h*w, C]``, in generation order, into ``[B, C, h, w]``; height and width are in tokens."""
        return sequence_to_latent(sequence, height, width, self.patch_side)

    def embed_prompt(self, ids: Tensor) -> Tensor:
        """Embed token ids int64 ``[R, T]`` as ``[R, T, D]``."""
        return self.backbone.embed_tokens(ids)

    def embed_tokens(self, tokens: Tensor, patch_index: Tensor, across: Tensor) -> Tensor:
        """Embed bits ``[R, P, C]`` of one patch, with its position, as ``[R, P, D]``."""
        embedded = self.projector(tokens)
        return embedded + self.position_term(patch_index, across).to(embedded.dtype)

    def position_term(self, patch_index: Tensor, across: Tensor) -> Tensor:
        """Return the 2-D position embedding of a patch, float32 ``[P, D]``: of its columns, then of its rows.

        Args:
            patch_index: int64 ``[1]``, in raster order of patches.
            across: int64 ``[1]``, the number of patches in a row of the image.
        """
        cell = torch.arange(self.config.tokens_per_step, device=patch_index.device)
        column = patch_index % across * self.patch_side + cell % self.patch_side
        row = patch_index // across * self.patch_side + cell // self.patch_side
        return torch.cat([self.axis[column], self.axis[row]], dim=1)

    def positions(self, height: int, width: int) -> Tensor:
        """Return the position embedding of an image of ``height`` x ``width`` tokens, float32 ``[h*w, D]``."""
        across = torch.tensor([width // self.patch_side], device=self.axis.device)
        patches = torch.arange(height * width // self.config.tokens_per_step, device=self.axis.device)
        return torch.cat([self.position_term(patch[None], across) for patch in patches])

    def forward(self, ids: Tensor, padding: Tensor, tokens: Tensor, height: int, width: int) -> Tensor:
        """Return the teacher-forced condition of every token, ``[B, h*w, D]``.

        Args:
            ids: int64 ``[B, T]``, prompts with the queries of the first patch, padded on the left.
            padding: int64 ``[B]``, the number of padding ids in each row, which no other position sees.
            tokens: bits ``[B, h*w, C]`` in generation order.
            height, width: of the image, in tokens.
        """
        patch = self.config.tokens_per_step
        positions = self.positions(height, width)
        inputs = self.projector(tokens[:, :-patch]) + positions[:-patch]
        sequence = torch.cat([self.embed_prompt(ids), inputs], dim=1)
        causal, length = ids.shape[1] - patch, sequence.shape[1]
        index = torch.arange(length, device=ids.device)
        seen = block_causal_mask(causal, length - causal, patch).to(ids.device)
        # Padding sees itself only: a row that sees nothing would be NaN, and NaN spreads.
        mask = seen & (index >= padding[:, None])[:, None] | torch.eye(length, dtype=torch.bool, device=ids.device)
        position = (index - padding[:, None]).clamp_min(0)
        cos, sin = (table.to(ids.device)[position][:, None] for table in self.backbone.rotary(length))

        def attend(_layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            queries, keys = self.backbone.rotate(queries, cos, sin), self.backbone.rotate(keys, cos, sin)
            return F.scaled_dot_product_attention(queries, keys, values, mask[:, None], enable_gqa=True)

        return self.backbone.hidden(sequence, attend)[:, causal:] + positions

    def loss(
        self,
        ids: Tensor,
        padding: Tensor,
        inputs: Tensor,
        targets: Tensor,
        size: tuple[int, int],
        time_draws: Tensor,
        noise: Tensor,
    ) -> Tensor:
        """Return the training loss of the generator, a scalar.

        Args:
            ids, padding: as for ``forward``; a dropped prompt is the unconditional one.
            inputs: bits ``[B, h*w, C]`` that the language model sees, some of them flipped; targets: the true bits.
            size: (height, width) in tokens.
            time_draws: normal or uniform draws ``[M*B*S]``, for M noisy copies of each of S patches.
            noise: standard normal ``[M*B*S, P, C]``.
        """
        config = self.config
        patches, copies = (-1, config.tokens_per_step), (config.targets_per_token, 1, 1)
        condition = self(ids, padding, inputs, *size).unflatten(1, patches).flatten(0, 1).repeat(copies)
        target = targets.unflatten(1, patches).flatten(0, 1).repeat(copies)
        return flow_loss(self.head, condition, target, training_times(config, time_draws), noise)

    @torch.no_grad()
    def sample_patches(
        self,
        prompts: Sequence[Tensor],
        size: tuple[int, int],
        *,
        steps: int,
        guidance: float,
        noise: Iterator[Tensor],
    ) -> Iterator[Tensor]:
        """Generate patch after patch by the plain path, with separate passes for conditional and unconditional rows.

        Args:
            prompts: int64 ``[B, T]``, with the queries of the first patch; under guidance a second tensor, whose T may
                differ, for the unconditional rows.
            size: (height, width) of the image in tokens.
            noise: standard normal draws ``[B, P, C]`` in the order of use.

        Yields:
            bits ``[B, P, C]`` of each patch.
        """
        config = self.config
        patches = size[0] * size[1] // config.tokens_per_step
        across = torch.tensor([size[1] // self.patch_side], device=prompts[0].device)
        streams = [(GrowingCache(config.tokens_per_step), self.embed_prompt(ids)) for ids in prompts]
        for patch in range(patches):
            index = torch.tensor([patch], device=across.device)
            hidden = torch.cat([cache.step(self.backbone, embeddings) for cache, embeddings in streams])
            condition = hidden + self.position_term(index, across)
            scale = patch_guidance(guidance, config.sampling.guidance_schedule, patch, patches)

            def predict(x: Tensor, times: Tensor, condition: Tensor = condition) -> Tensor:
                return self.head(x, times, condition)

            tokens = quantize(sample_patch(predict, noise, steps, config.time_shift, scale))
            yield tokens
            if patch + 1 < patches:
                embeddings = self.embed_tokens(tokens, index, across)
                streams = [(cache, embeddings) for cache, _ in streams]
