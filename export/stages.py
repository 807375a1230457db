"""The stages as modules to be traced: each one a launch, with all that the host would otherwise do between launches.

R = rows run by the backbone, B = independent draws of the head or images of the decoder, T = length of a backbone pass,
N = head evaluations of a patch, P = tokens per step, S = cache length. The weights are those of the model: nothing is
copied.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bitdance_edge.export.profiles import Profile
from bitdance_edge.model import BitDance
from bitdance_edge.model.order import latent_to_sequence, sequence_to_latent
from bitdance_edge.model.tokenizer import image_from_bytes, image_to_bytes, quantize


class PromptStage(nn.Module):
    """Class ids ``[R]`` to the prompt ``[R, T, D]``: class tokens, then the queries of the first patch."""

    def __init__(self, model: BitDance) -> None:
        super().__init__()
        self.backbone = model.backbone

    def forward(self, class_ids: Tensor) -> Tensor:
        return self.backbone.embed_classes(class_ids)


class TokensStage(nn.Module):
    """Predictions ``[B, P, C]`` to their tokens ``[B, P, C]``, and embeddings ``[R, P, D]`` of row ``rows[r]`` each."""

    def __init__(self, model: BitDance) -> None:
        super().__init__()
        self.backbone = model.backbone

    def forward(self, x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        tokens = quantize(x)
        return tokens, self.backbone.embed_tokens(tokens.to(_dtype(self))).index_select(0, rows)


class TimeStage(nn.Module):
    """Times ``[N]`` to their embeddings ``[N, W]``: a table made once per sampling schedule."""

    def __init__(self, model: BitDance) -> None:
        super().__init__()
        self.time_embed = model.head.time_embed

    def forward(self, times: Tensor) -> Tensor:
        return self.time_embed(times)


class BackboneStage(nn.Module):
    """Embeddings ``[R, T, D]`` on top of the cache to the head's embedded condition ``[R, P, W]`` of the last P.

    One graph for the prompt and for every patch: the mask ``[R, 1, T, S]`` says who sees whom, ``cache_position``
    ``[R]`` where the T new keys and values go.
    """

    def __init__(self, model: BitDance, profile: Profile) -> None:
        super().__init__()
        self.backbone = model.backbone
        self.cond_embed = model.head.cond_embed
        self.profile = profile

    def forward(
        self,
        embeddings: Tensor,
        positions: Tensor,
        mask: Tensor,
        cache_position: Tensor,
        patch_index: Tensor,
        *cache: Tensor,
    ) -> tuple[Tensor, ...]:
        cos, sin = self.backbone.cos, self.backbone.sin
        updated: list[Tensor] = []

        def attend(layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            queries = self.profile.rotate(queries, cos, sin, positions)
            keys = self.profile.rotate(keys, cos, sin, positions)
            keys = self.profile.update_cache(cache[2 * layer], keys, cache_position)
            values = self.profile.update_cache(cache[2 * layer + 1], values, cache_position)
            updated.extend((keys, values))
            return F.scaled_dot_product_attention(queries, keys, values, mask)

        tokens = self.backbone.config.tokens_per_step
        last = torch.arange(tokens) + (embeddings.shape[1] - tokens)
        hidden = self.backbone.hidden(embeddings, attend).index_select(1, last)
        return self.cond_embed(hidden + self.backbone.position_term(patch_index)), *updated


class HeadStage(nn.Module):
    """One evaluation of the head, guidance and sampler step: noisy ``x`` ``[B, P, C]`` to the next.

    ``rows`` ``[R]`` says which draw each row of the condition belongs to. The first B rows are conditional and the last
    B unconditional; without guidance they are the same rows, and guidance changes nothing. ``coefficients`` are the
    three numbers (A, B, C) of the sampler step.
    """

    def __init__(self, model: BitDance) -> None:
        super().__init__()
        self.head = model.head

    def forward(
        self,
        x: Tensor,
        condition: Tensor,
        time_embedding: Tensor,
        coefficients: Tensor,
        guidance: Tensor,
        noise: Tensor,
        rows: Tensor,
    ) -> Tensor:
        clean = self.head.denoise(x.index_select(0, rows).to(_dtype(self)), F.silu(time_embedding + condition))
        draws = torch.arange(x.shape[0])
        conditional = clean.index_select(0, draws).float()
        unconditional = clean.index_select(0, draws + (rows.shape[0] - x.shape[0])).float()
        guided = unconditional + guidance * (conditional - unconditional)
        a, b, c = coefficients.unbind(0)
        return a * x + b * guided + c * noise


class DecoderStage(nn.Module):
    """Tokens ``[B, h*w, C]`` in generation order to pixels ``[B, H, W, 3]``; a ``gan_decoder`` takes noise too."""

    def __init__(self, model: BitDance) -> None:
        super().__init__()
        self.decoder = model.tokenizer.decoder
        self.grid, self.patch_side = model.config.grid, model.patch_side

    def _latent(self, sequence: Tensor) -> Tensor:
        return sequence_to_latent(sequence, self.grid, self.grid, self.patch_side).to(_dtype(self))

    def forward(self, tokens: Tensor, noise: Tensor | None = None) -> Tensor:
        return image_to_bytes(self.decoder(self._latent(tokens), None if noise is None else self._latent(noise)))


class EncoderStage(nn.Module):
    """Pixels ``[B, H, W, 3]`` to tokens ``[B, h*w, C]`` in generation order."""

    def __init__(self, model: BitDance) -> None:
        super().__init__()
        self.encoder = model.tokenizer.encoder
        self.patch_side = model.patch_side

    def forward(self, pixels: Tensor) -> Tensor:
        latent = self.encoder(image_from_bytes(pixels).to(_dtype(self)))
        return latent_to_sequence(quantize(latent), self.patch_side).float()


def _dtype(module: nn.Module) -> torch.dtype:
    return next(module.parameters()).dtype


@dataclass(frozen=True)
class StageExport:
    """How one stage is traced: the module, and for each tensor its name, element type and dimensions.

    A dimension given as a name may change; it is traced at ``TRACED`` and stays free in the graph.
    """

    module: nn.Module
    inputs: dict[str, tuple[torch.dtype, tuple[int | str, ...]]]
    outputs: tuple[str, ...]


# Sizes that stand for a changing dimension while a graph is traced; all differ, so that none is mistaken for another,
# and T is longer than any patch.
TRACED = {"R": 6, "B": 3, "T": 67, "N": 5}


def stage_exports(model: BitDance, profile: Profile, dtype: torch.dtype) -> dict[str, Callable[[], StageExport]]:
    """Every stage of a model, built when it is asked for."""
    config = model.config
    f32, i64 = torch.float32, torch.int64
    patch = (config.tokens_per_step, config.bits)
    pixels = (torch.uint8, ("B", config.resolution, config.resolution, 3))
    sequence = (f32, ("B", config.grid**2, config.bits))
    condition = (dtype, ("R", config.tokens_per_step, config.head_width))
    cached = (dtype, ("R", config.heads, config.cache_length, config.head_dim))
    caches = [f"{layer}.{part}" for layer in range(config.layers) for part in ("key", "value")]

    def backbone() -> StageExport:
        inputs = {
            "embeddings": (dtype, ("R", "T", config.width)),
            "positions": (i64, ("R", "T")),
            "mask": (torch.bool, ("R", 1, "T", config.cache_length)),
            "cache_position": (i64, ("R",)),
            "patch_index": (i64, (1,)),
            **{f"past_key_values.{name}": cached for name in caches},
        }
        outputs = ("condition", *(f"present.{name}" for name in caches))
        return StageExport(BackboneStage(model, profile), inputs, outputs)

    def head() -> StageExport:
        inputs = {
            "x": (f32, ("B", *patch)),
            "condition": condition,
            "time_embedding": (dtype, (config.head_width,)),
            "coefficients": (f32, (3,)),
            "guidance": (f32, (1,)),
            "noise": (f32, ("B", *patch)),
            "rows": (i64, ("R",)),
        }
        return StageExport(HeadStage(model), inputs, ("x_next",))

    def decoder() -> StageExport:
        inputs = {"tokens": sequence, **({"noise": sequence} if config.tokenizer.gan_decoder else {})}
        return StageExport(DecoderStage(model), inputs, ("pixels",))

    return {
        "prompt": lambda: StageExport(PromptStage(model), {"class_ids": (i64, ("R",))}, ("embeddings",)),
        "tokens": lambda: StageExport(
            TokensStage(model), {"x": (f32, ("B", *patch)), "rows": (i64, ("R",))}, ("tokens", "embeddings")
        ),
        "time": lambda: StageExport(TimeStage(model), {"times": (f32, ("N",))}, ("time_embeddings",)),
        "backbone": backbone,
        "head": head,
        "decoder": decoder,
        "encoder": lambda: StageExport(EncoderStage(model), {"pixels": pixels}, ("tokens",)),
    }
