"""The stages as modules to be traced; each is one launch, and does what the host would otherwise do between launches.

R = rows run by the backbone, B = independent draws of the head or images of the decoder, T = length of a backbone pass,
N = times, M = head evaluations modulated at once, P = tokens per step, S = cache length. Each stage holds the model
without the modules it does not use, so that names in a graph are those of the checkpoint; no weight is copied.
"""

import copy
from collections.abc import Collection
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from bitdance_edge.export.opsets import CacheOperators
from bitdance_edge.model import BitDance, TextToImage
from bitdance_edge.model.order import latent_to_patches, patches_to_latent
from bitdance_edge.model.tokenizer import image_from_bytes, image_to_bytes, quantize
from bitdance_edge.model.tokenizer_model import TokenizerModel

Generator = BitDance | TextToImage
Exported = Generator | TokenizerModel
Module = TypeVar("Module", bound=nn.Module)


def without(module: Module, unused: Collection[str]) -> Module:
    """Copy a module without some of the modules in it, named by their paths; the weights of the others are shared."""
    copied = copy.copy(module)
    copied._modules = {
        name: without(child, [path.removeprefix(f"{name}.") for path in unused if path.startswith(f"{name}.")])
        for name, child in module.named_children()
        if name not in unused
    }
    return copied


class Stage(nn.Module):
    # Modules of the model that the stage does not call: tracing takes time for every weight, used or not.
    unused: ClassVar[tuple[str, ...]]

    def __init__(self, model: Exported) -> None:
        super().__init__()
        self.model: Any = without(model, self.unused)  # of a kind that has what the stage calls

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype


def last_rows(x: Tensor, axis: int, count: int | torch.SymInt) -> Tensor:
    """The last ``count`` of an axis, as a Slice: an index computed by the graph would be made on the host."""
    return x.narrow(axis, x.shape[axis] - count, count)  # type: ignore[arg-type]  symbolic sizes are allowed


class PromptStage(Stage):
    """Class ids ``[R]`` or token ids ``[R, T]`` to the prompt ``[R, T, D]``; the first patch's queries end it."""

    unused = ("tokenizer", "projector", "head", "backbone.layers")

    def forward(self, ids: Tensor) -> Tensor:
        return self.model.embed_prompt(ids)


class TokensStage(Stage):
    """Predictions ``[B, P, C]`` to their tokens ``[B, P, C]``, and embeddings ``[R, P, D]`` of row ``rows[r]`` each.

    ``place`` is where the patch stands in the image, for models whose embeddings say so (``TextToImage.embed_tokens``).
    """

    unused = ("tokenizer", "head", "backbone.layers")

    def forward(self, x: Tensor, rows: Tensor, place: tuple[Tensor, ...] = ()) -> tuple[Tensor, Tensor]:
        tokens = quantize(x)
        return tokens, self.model.embed_tokens(tokens.to(self.dtype), *place).index_select(0, rows)


class TimeStage(Stage):
    """Times ``[N]`` to their embeddings ``[N, W]``: a table made once per sampling schedule."""

    unused = ("tokenizer", "projector", "backbone", "head.res_blocks", "head.ada_ln_blocks", "head.final_layer")

    def forward(self, times: Tensor) -> Tensor:
        return self.model.head.time_embed(times)


class BackboneStage(Stage):
    """Embeddings ``[R, T, D]`` on top of the cache to the head's embedded condition ``[R, P, W]`` of the last P.

    One graph for the prompt and for every patch: the mask ``[R, 1, T, S]`` says which position sees which,
    ``cache_position`` ``[R]`` where the T new keys and values go, ``place`` which patch the condition is for.
    """

    unused = ("tokenizer", "projector", "head.res_blocks", "head.ada_ln_blocks", "head.time_embed")

    cos: Tensor
    sin: Tensor

    def __init__(self, model: Generator, operators: CacheOperators) -> None:
        super().__init__(model)
        self.operators = operators
        for name, table in zip(("cos", "sin"), model.backbone.rotary(model.config.cache_length), strict=True):
            self.register_buffer(name, table.to(self.dtype), persistent=False)

    def forward(
        self,
        embeddings: Tensor,
        positions: Tensor,
        mask: Tensor,
        cache_position: Tensor,
        place: tuple[Tensor, ...],
        cache: tuple[Tensor, ...],
    ) -> tuple[Tensor, ...]:
        interleaved = self.model.backbone.rotary_interleaved
        updated: list[Tensor] = []

        def attend(layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            queries = self.operators.rotate(queries, self.cos, self.sin, positions, interleaved)
            keys = self.operators.rotate(keys, self.cos, self.sin, positions, interleaved)
            keys = self.operators.update_cache(cache[2 * layer], keys, cache_position)
            values = self.operators.update_cache(cache[2 * layer + 1], values, cache_position)
            updated.extend((keys, values))
            return self.operators.attend(queries, keys, values, mask)

        hidden = last_rows(self.model.backbone.hidden(embeddings, attend), 1, self.model.config.tokens_per_step)
        return self.model.head.cond_embed(hidden + self.model.position_term(*place).to(hidden.dtype)), *updated


class ModulationStage(Stage):
    """adaLN of M head evaluations: time embeddings ``[M, W]`` and condition ``[R, P, W]`` to ``[M, R, P, n*W]`` each.

    Their products are a fifth of the head's and do not depend on its noisy tokens: a product over many evaluations
    reads the weights once for all of them.
    """

    unused = ("tokenizer", "projector", "backbone", "head.res_blocks", "head.time_embed")

    def forward(self, time_embeddings: Tensor, condition: Tensor) -> tuple[Tensor, ...]:
        embedding = time_embeddings[:, None, None] + condition
        return tuple(
            part.unflatten(0, embedding.shape[:3]) for part in self.model.head.modulate(embedding.flatten(0, 2))
        )


class HeadStage(Stage):
    """One evaluation of the head, guidance and sampler step: noisy ``x`` ``[B, P, C]`` to the next.

    ``rows`` ``[R]`` says which draw each row of the modulations ``[R, P, n*W]`` belongs to. The first B rows are
    conditional and the last B unconditional; without guidance they are the same rows, and guidance changes nothing.
    ``coefficients`` are the three numbers (A, B, C) of the sampler step.
    """

    unused = ("tokenizer", "projector", "backbone", "head.time_embed", "head.cond_embed", "head.ada_ln_blocks")

    def forward(
        self,
        x: Tensor,
        coefficients: Tensor,
        guidance: Tensor,
        noise: Tensor,
        rows: Tensor,
        modulations: tuple[Tensor, ...],
    ) -> Tensor:
        clean = self.model.head.denoise(x.index_select(0, rows).to(self.dtype), modulations)
        conditional, unconditional = clean[: x.shape[0]].float(), last_rows(clean, 0, x.shape[0]).float()
        guided = unconditional + guidance * (conditional - unconditional)
        a, b, c = coefficients.unbind(0)
        return a * x + b * guided + c * noise


class DecoderStage(Stage):
    """Tokens ``[B, h/p, w/p, p*p, C]`` to pixels ``[B, H, W, 3]``; a ``gan_decoder`` takes noise too.

    The tokens are those of the sequence in its order: patches of p x p, row by row.
    """

    unused = ("projector", "backbone", "head", "tokenizer.encoder")

    def _latent(self, patches: Tensor) -> Tensor:
        return patches_to_latent(patches, self.model.patch_side).to(self.dtype)

    def forward(self, tokens: Tensor, noise: Tensor | None = None) -> Tensor:
        bits = self._latent(tokens)
        return image_to_bytes(self.model.tokenizer.decoder(bits, None if noise is None else self._latent(noise)))


class EncoderStage(Stage):
    """Pixels ``[B, H, W, 3]`` to tokens ``[B, h/p, w/p, p*p, C]``."""

    unused = ("projector", "backbone", "head", "tokenizer.decoder")

    def forward(self, pixels: Tensor) -> Tensor:
        latent = self.model.tokenizer.encoder(image_from_bytes(pixels).to(self.dtype))
        return latent_to_patches(quantize(latent), self.model.patch_side).float()
