"""The stages as modules to be traced: each one a launch, with all that the host would otherwise do between launches.

R = rows run by the backbone, B = independent draws of the head or images of the decoder, T = length of a backbone pass,
N = times, M = head evaluations modulated at once, P = tokens per step, S = cache length. Each stage holds the whole
model and uses a part of it, so that names in a graph are those of the checkpoint; nothing is copied.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from bitdance_edge.export.opsets import CacheOperators
from bitdance_edge.model import BitDance, TextToImage
from bitdance_edge.model.order import latent_to_patches, patches_to_latent
from bitdance_edge.model.tokenizer import image_from_bytes, image_to_bytes, quantize

Generator = BitDance | TextToImage
Shape = tuple[int | str, ...]
Inputs = Mapping[str, tuple[torch.dtype, Shape]]
Value = TypeVar("Value")
SLOT_MULTIPLE = 8


class Stage(nn.Module):
    def __init__(self, model: Generator) -> None:
        super().__init__()
        self.model = model

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype


def last_rows(x: Tensor, axis: int, count: int | torch.SymInt) -> Tensor:
    """The last ``count`` of an axis, as a Slice: an index computed by the graph would be made on the host."""
    return x.narrow(axis, x.shape[axis] - count, count)  # type: ignore[arg-type]  symbolic sizes are allowed


class PromptStage(Stage):
    """Class ids ``[R]`` or token ids ``[R, T]`` to the prompt ``[R, T, D]``; the first patch's queries end it."""

    def forward(self, ids: Tensor) -> Tensor:
        return self.model.embed_prompt(ids)


class TokensStage(Stage):
    """Predictions ``[B, P, C]`` to their tokens ``[B, P, C]``, and embeddings ``[R, P, D]`` of row ``rows[r]`` each.

    ``place`` is where the patch stands in the image, for models whose embeddings say so (``TextToImage.embed_tokens``).
    """

    def forward(self, x: Tensor, rows: Tensor, place: tuple[Tensor, ...] = ()) -> tuple[Tensor, Tensor]:
        tokens = quantize(x)
        return tokens, self.model.embed_tokens(tokens.to(self.dtype), *place).index_select(0, rows)


class TimeStage(Stage):
    """Times ``[N]`` to their embeddings ``[N, W]``: a table made once per sampling schedule."""

    def forward(self, times: Tensor) -> Tensor:
        return self.model.head.time_embed(times)


class BackboneStage(Stage):
    """Embeddings ``[R, T, D]`` on top of the cache to the head's embedded condition ``[R, P, W]`` of the last P.

    One graph for the prompt and for every patch: the mask ``[R, 1, T, S]`` says who sees whom, ``cache_position``
    ``[R]`` where the T new keys and values go, ``place`` which patch of the image the condition is for.
    """

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

    def _latent(self, patches: Tensor) -> Tensor:
        return patches_to_latent(patches, self.model.patch_side).to(self.dtype)

    def forward(self, tokens: Tensor, noise: Tensor | None = None) -> Tensor:
        bits = self._latent(tokens)
        return image_to_bytes(self.model.tokenizer.decoder(bits, None if noise is None else self._latent(noise)))


class EncoderStage(Stage):
    """Pixels ``[B, H, W, 3]`` to tokens ``[B, h/p, w/p, p*p, C]``."""

    def forward(self, pixels: Tensor) -> Tensor:
        latent = self.model.tokenizer.encoder(image_from_bytes(pixels).to(self.dtype))
        return latent_to_patches(quantize(latent), self.model.patch_side).float()


@dataclass(frozen=True)
class StageExport:
    """How one stage is traced: the module, and for each tensor its name, element type and dimensions.

    A dimension given as a name may change; it is traced at ``TRACED`` and stays free in the graph.
    """

    module: nn.Module
    inputs: Inputs
    outputs: tuple[str, ...]
    grouped: tuple[tuple[str, ...], ...] = ()  # inputs that one argument of the module takes as a tuple; they come last

    def arguments(self, values: Mapping[str, Value]) -> tuple:
        """One value an input, as the module's ``forward`` takes them."""
        together = {name for group in self.grouped for name in group}
        single = [values[name] for name in self.inputs if name not in together]
        return (*single, *(tuple(values[name] for name in group) for group in self.grouped if group))


# Sizes that stand for a changing dimension while a graph is traced; all differ, so that none is mistaken for another,
# and T is longer than any patch. PH and PW are the patches of an image, down and across.
TRACED = {"R": 6, "B": 3, "T": 67, "N": 5, "M": 7, "PH": 2, "PW": 4}


def cache_slots(model: Generator) -> int:
    """Slots of the cache: those that the longest sequence needs, rounded up to what fused attention kernels take."""
    return -(-model.config.cache_length // SLOT_MULTIPLE) * SLOT_MULTIPLE


def stage_exports(
    model: Generator, operators: CacheOperators, dtype: torch.dtype
) -> dict[str, Callable[[], StageExport]]:
    """Every stage of a model, built when it is asked for."""
    config = model.config
    f32, i64 = torch.float32, torch.int64
    layout = _layout(model)
    patch, slots = (config.tokens_per_step, config.bits), cache_slots(model)
    width = model.head.config.width
    condition = (dtype, ("R", config.tokens_per_step, width))
    adaln = {
        f"modulation.{i}": (dtype, ("R", config.tokens_per_step, linear.out_features))
        for i, linear in enumerate((*model.head.ada_ln_blocks, model.head.final_layer.ada_ln_modulation))
    }

    def tokens() -> StageExport:
        inputs = {"x": (f32, ("B", *patch)), "rows": (i64, ("R",)), **layout.token_place}
        return StageExport(TokensStage(model), inputs, ("tokens", "embeddings"), (tuple(layout.token_place),))

    def backbone() -> StageExport:
        cached = (dtype, ("R", layout.cache_heads, slots, layout.head_dim))
        caches = [f"{layer}.{part}" for layer in range(layout.layers) for part in ("key", "value")]
        inputs = {
            "embeddings": (dtype, ("R", "T", layout.width)),
            "positions": (i64, ("R", "T")),
            "mask": (torch.bool, ("R", 1, "T", slots)),
            "cache_position": (i64, ("R",)),
            **layout.place,
            **{f"past_key_values.{name}": cached for name in caches},
        }
        outputs = ("condition", *(f"present.{name}" for name in caches))
        grouped = (tuple(layout.place), tuple(f"past_key_values.{name}" for name in caches))
        return StageExport(BackboneStage(model, operators), inputs, outputs, grouped)

    def modulation() -> StageExport:
        inputs = {"time_embeddings": (dtype, ("M", width)), "condition": condition}
        return StageExport(ModulationStage(model), inputs, tuple(adaln))

    def head() -> StageExport:
        inputs = {
            "x": (f32, ("B", *patch)),
            "coefficients": (f32, (3,)),
            "guidance": (f32, (1,)),
            "noise": (f32, ("B", *patch)),
            "rows": (i64, ("R",)),
            **adaln,
        }
        return StageExport(HeadStage(model), inputs, ("x_next",), (tuple(adaln),))

    def decoder() -> StageExport:
        inputs = {"tokens": layout.sequence, **({"noise": layout.sequence} if config.tokenizer.gan_decoder else {})}
        return StageExport(DecoderStage(model), inputs, ("pixels",))

    return {
        "prompt": lambda: StageExport(PromptStage(model), layout.prompt, ("embeddings",)),
        "tokens": tokens,
        "time": lambda: StageExport(TimeStage(model), {"times": (f32, ("N",))}, ("time_embeddings",)),
        "backbone": backbone,
        "modulation": modulation,
        "head": head,
        "decoder": decoder,
        "encoder": lambda: StageExport(EncoderStage(model), {"pixels": layout.pixels}, ("tokens",)),
    }


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where the two kinds of model differ in what their stages are given."""

    width: int
    layers: int
    cache_heads: int
    head_dim: int
    prompt: Inputs
    place: Inputs  # which patch of the image, for the head's condition
    token_place: Inputs  # the same for the embedding of tokens, where that depends on it
    sequence: tuple[torch.dtype, Shape]
    pixels: tuple[torch.dtype, Shape]


def _layout(model: Generator) -> Layout:
    f32, i64, u8 = torch.float32, torch.int64, torch.uint8
    side, bits = model.patch_side, model.config.bits
    index: Inputs = {"patch_index": (i64, (1,))}
    if isinstance(model, TextToImage):
        text = model.config.backbone
        place: Inputs = {**index, "patches_across": (i64, (1,))}
        pixels = model.config.patch_pixels
        return Layout(
            width=text.width,
            layers=text.layers,
            cache_heads=text.kv_heads,
            head_dim=text.head_dim,
            prompt={"input_ids": (i64, ("R", "T"))},
            place=place,
            token_place=place,
            sequence=(f32, ("B", "PH", "PW", side * side, bits)),
            pixels=(u8, ("B", f"{pixels}*PH", f"{pixels}*PW", 3)),
        )
    config = model.config
    patches = config.grid // side
    return Layout(
        width=config.width,
        layers=config.layers,
        cache_heads=config.heads,
        head_dim=config.head_dim,
        prompt={"class_ids": (i64, ("R",))},
        place=index,
        token_place={},
        sequence=(f32, ("B", patches, patches, side * side, bits)),
        pixels=(u8, ("B", config.resolution, config.resolution, 3)),
    )
