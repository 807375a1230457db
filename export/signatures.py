"""The inputs and outputs of each stage, as it is traced: element type and dimensions of every tensor."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar, cast

import torch
from torch import nn

from bitdance_edge.export import stages, window_stages
from bitdance_edge.export.opsets import CacheOperators
from bitdance_edge.export.stages import Exported, Generator
from bitdance_edge.model import TextToImage
from bitdance_edge.model.tokenizer_model import TokenizerModel
from bitdance_edge.runtime.bundle.signatures import MODULATION, TABLE
from bitdance_edge.runtime.bundle.stage_names import StageName

Shape = tuple[int | str, ...]
Tensor = tuple[torch.dtype, Shape]
Inputs = Mapping[str, Tensor]
Value = TypeVar("Value")
SLOT_MULTIPLE = 8
F32, I64, U8 = torch.float32, torch.int64, torch.uint8
# Sizes that stand for a changing dimension while a graph is traced; all differ, so that none is mistaken for another,
# and T is longer than any patch. PH and PW are the patches of an image, down and across.
TRACED = {"R": 6, "B": 3, "T": 67, "N": 5, "M": 7, "W": 9, "H": 2, "K": 11, "PH": 2, "PW": 4}


@dataclass(frozen=True)
class StageExport:
    """How one stage is traced: the module, and for each tensor its name, element type and dimensions.

    A dimension given as a name may change; it is traced at ``TRACED`` and stays free in the graph.
    """

    module: nn.Module
    inputs: Inputs
    outputs: tuple[str, ...]
    grouped: tuple[tuple[str, ...], ...] = ()  # inputs that one argument of the module takes as a tuple; they come last
    least: Mapping[str, int] = field(default_factory=dict)  # dimension -> its smallest size, where that is not 1

    def arguments(self, values: Mapping[str, Value]) -> tuple:
        """One value an input, as the module's ``forward`` takes them."""
        grouped = {name for group in self.grouped for name in group}
        single = [values[name] for name in self.inputs if name not in grouped]
        return (*single, *(tuple(values[name] for name in group) for group in self.grouped if group))


def cache_slots(model: Generator) -> int:
    """Slots of the cache: those that the longest sequence needs, rounded up to what fused attention kernels take."""
    return -(-model.config.cache_length // SLOT_MULTIPLE) * SLOT_MULTIPLE


def stage_exports(
    model: Exported, operators: CacheOperators, dtype: torch.dtype
) -> dict[str, Callable[[], StageExport]]:
    """Name -> function that builds the stage of a model, in ``dtype``."""
    if isinstance(model, TokenizerModel):
        return _image_stages(model, *_any_size(model))
    layout = _layout(model)
    return {
        StageName.PROMPT: lambda: StageExport(stages.PromptStage(model), layout.prompt, ("embeddings",)),
        StageName.TOKENS: lambda: _tokens(model, layout),
        StageName.TIME: lambda: StageExport(stages.TimeStage(model), {"times": (F32, ("N",))}, ("time_embeddings",)),
        StageName.BACKBONE: lambda: _backbone(model, operators, dtype, layout),
        StageName.MODULATION: lambda: _modulation(model, dtype),
        StageName.HEAD: lambda: _head(model, dtype),
        StageName.SETTLE: lambda: _settle(model, dtype),
        StageName.EXTRAPOLATE: lambda: _extrapolate(model),
        StageName.ADVANCE: lambda: _advance(model),
        **_image_stages(model, layout.sequence, layout.pixels),
    }


def _image_stages(model: Exported, sequence: Tensor, pixels: Tensor) -> dict[str, Callable[[], StageExport]]:
    """Decoder and encoder, between tokens and pixels of these element types and dimensions."""
    noise = {"noise": sequence} if model.config.tokenizer.gan_decoder else {}
    return {
        StageName.DECODER: lambda: StageExport(stages.DecoderStage(model), {"tokens": sequence, **noise}, ("pixels",)),
        StageName.ENCODER: lambda: StageExport(stages.EncoderStage(model), {"pixels": pixels}, ("tokens",)),
    }


def _any_size(model: TextToImage | TokenizerModel) -> tuple[Tensor, Tensor]:
    """Tokens and pixels of images of several sizes: ``PH`` by ``PW`` patches."""
    side = model.patch_side
    across = side * model.config.tokenizer.downsampling
    sequence = (F32, ("B", "PH", "PW", side * side, model.config.bits))
    return sequence, (U8, ("B", f"{across}*PH", f"{across}*PW", 3))


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
    sequence: Tensor
    pixels: Tensor


def _layout(model: Generator) -> Layout:
    side, bits = model.patch_side, model.config.bits
    index: Inputs = {"patch_index": (I64, (1,))}
    if isinstance(model, TextToImage):
        text = model.config.backbone
        place: Inputs = {**index, "patches_across": (I64, (1,))}
        sequence, pixels = _any_size(model)
        return Layout(
            width=text.width,
            layers=text.layers,
            cache_heads=text.kv_heads,
            head_dim=text.head_dim,
            prompt={"input_ids": (I64, ("R", "T"))},
            place=place,
            token_place=place,
            sequence=sequence,
            pixels=pixels,
        )
    config = model.config
    patches = config.grid // side
    return Layout(
        width=config.width,
        layers=config.layers,
        cache_heads=config.heads,
        head_dim=config.head_dim,
        prompt={"class_ids": (I64, ("R",))},
        place=index,
        token_place={},
        sequence=(F32, ("B", patches, patches, side * side, bits)),
        pixels=(U8, ("B", config.resolution, config.resolution, 3)),
    )


def _tokens(model: Generator, layout: Layout) -> StageExport:
    inputs = {"x": _patch(model), "rows": (I64, ("R",)), **layout.token_place}
    return StageExport(stages.TokensStage(model), inputs, ("tokens", "embeddings"), (tuple(layout.token_place),))


def _backbone(model: Generator, operators: CacheOperators, dtype: torch.dtype, layout: Layout) -> StageExport:
    slots = cache_slots(model)
    cached = (dtype, ("R", layout.cache_heads, slots, layout.head_dim))
    caches = [f"{layer}.{part}" for layer in range(layout.layers) for part in ("key", "value")]
    inputs = {
        "embeddings": (dtype, ("R", "T", layout.width)),
        "positions": (I64, ("R", "T")),
        "mask": (torch.bool, ("R", 1, "T", slots)),
        "cache_position": (I64, ("R",)),
        **layout.place,
        **{f"past_key_values.{name}": cached for name in caches},
    }
    return StageExport(
        stages.BackboneStage(model, operators),
        inputs,
        outputs=("condition", *(f"present.{name}" for name in caches)),
        grouped=(tuple(layout.place), tuple(f"past_key_values.{name}" for name in caches)),
        least={"T": model.config.tokens_per_step},  # the condition is of as many positions
    )


def _modulation(model: Generator, dtype: torch.dtype) -> StageExport:
    width = model.head.config.width
    inputs = {
        "time_embeddings": (dtype, ("M", width)),
        "condition": (dtype, ("R", model.config.tokens_per_step, width)),
    }
    return StageExport(stages.ModulationStage(model), inputs, tuple(_modulations(model, dtype)))


def _head(model: Generator, dtype: torch.dtype) -> StageExport:
    modulations = _modulations(model, dtype)
    inputs = {
        "x": _patch(model),
        "coefficients": (F32, (3,)),
        "guidance": (F32, (1,)),
        "noise": _patch(model),
        "rows": (I64, ("R",)),
        **modulations,
    }
    return StageExport(stages.HeadStage(model), inputs, ("x_next",), (tuple(modulations),))


def _settle(model: Generator, dtype: torch.dtype) -> StageExport:
    draws, rows = (model.config.tokens_per_step, model.config.bits), (I64, ("R",))
    modulations = _modulations(model, dtype)
    tables = {f"{TABLE}{i}": (kind, ("N", *shape)) for i, (kind, shape) in enumerate(modulations.values())}
    inputs = {
        "states": (F32, ("2*W", "B", *draws)),
        "evaluated": (F32, ("W", "R", *draws)),
        "reached": (I64, ("B",)),
        "tolerance": (F32, (1,)),
        "evaluations": (I64, (1,)),
        "ahead": (I64, ("2*W",)),
        "rows": rows,
        "every": rows,
        **tables,
    }
    outputs = ("settled", "x", "window", *modulations)
    return StageExport(window_stages.SettleStage(), inputs, outputs, (tuple(tables),))


def _extrapolate(model: Generator) -> StageExport:
    draws, rows = (model.config.tokens_per_step, model.config.bits), (I64, ("R",))
    window, reached = (F32, ("W", "R", *draws)), (I64, ("B",))
    inputs = {
        **dict.fromkeys(("x", "clean", "last_x", "last_clean"), window),
        **dict.fromkeys(("reached", "last_reached"), reached),
        "schedule": (F32, ("K", 3)),
        "added": (F32, ("K", "B", *draws)),
        "weights": (F32, ("R",)),
        "free": (F32, (draws[0],)),
        "evaluations": (I64, (1,)),
        "ahead": (I64, ("2*W",)),
        "rows": rows,
        "every": rows,
    }
    outputs = ("first", "base", "gain", "slope", "keep", "offset")
    return StageExport(window_stages.ExtrapolateStage(), inputs, outputs)


def _advance(model: Generator) -> StageExport:
    tokens, bits = model.config.tokens_per_step, model.config.bits
    inputs = {
        "x": (F32, ("B", tokens, bits)),
        "base": (F32, ("H", "B", tokens, bits)),
        "gain": (F32, ("H", "B", tokens, 1)),
        "slope": (F32, ("B", 1, 1)),
        "keep": (F32, ("B", tokens, 1)),
        "offset": (F32, ("B", tokens, bits)),
    }
    return StageExport(window_stages.AdvanceStage(), inputs, ("x_next",))


def _patch(model: Generator) -> tuple[torch.dtype, Shape]:
    return F32, ("B", model.config.tokens_per_step, model.config.bits)


def _modulations(model: Generator, dtype: torch.dtype) -> Inputs:
    linears = [cast(nn.Linear, each) for each in (*model.head.ada_ln_blocks, model.head.final_layer.ada_ln_modulation)]
    return {
        f"{MODULATION}{i}": (dtype, ("R", model.config.tokens_per_step, linear.out_features))
        for i, linear in enumerate(linears)
    }
