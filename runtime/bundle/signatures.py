"""What the loop binds: the inputs and outputs that the stages of a model have, by its manifest's own numbers.

A dimension is a number; a name in capitals, which varies (``specs.DIMS``); or a name in small letters, a width that the
manifest does not give elsewhere: wherever it stands it is the same number. ``FLOAT`` is the type of the whole bundle.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from bitdance_edge.runtime.bundle.specs import TEXT_TO_IMAGE, CacheSpec, ImageSize, ModelSpec
from bitdance_edge.runtime.bundle.stage_names import StageName

FLOAT = "float"
MODULATION = "modulation."  # how the names of the head's modulations start
TABLE = "table."  # and of the tables of all evaluations' modulations
F32, I64, U8, BOOL = "float32", "int64", "uint8", "bool"
Tensor = tuple[str, tuple[int | str, ...]]  # element type and dimensions
Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Signature:
    inputs: Tensors
    outputs: Tensors


def cache_names(cache: CacheSpec) -> Iterator[tuple[str, str]]:
    """Yield the backbone's cache tensors, as pairs of input and output name."""
    for layer in range(cache.layers):
        for part in ("key", "value"):
            yield f"past_key_values.{layer}.{part}", f"present.{layer}.{part}"


def loop_signatures(model: ModelSpec, cache: CacheSpec, modulations: int) -> dict[str, Signature]:
    """The stages of the loop; ``modulations`` is their number, which depends on the head's blocks."""
    text, patch = model.kind == TEXT_TO_IMAGE, (F32, ("B", model.tokens_per_step, model.bits))
    per_step = model.tokens_per_step
    index: Tensors = {"patch_index": (I64, (1,))}
    place: Tensors = {**index, "patches_across": (I64, (1,))} if text else index
    cached = (FLOAT, ("R", cache.heads, cache.length, cache.head_dim))
    names = list(cache_names(cache))
    tables = [f"{MODULATION}{i}" for i in range(modulations)]
    prompt = ("input_ids", ("R", "T"), "T") if text else ("class_ids", ("R",), model.prompt_tokens)
    rows, condition = (I64, ("R",)), (FLOAT, ("R", per_step, "head"))
    return {
        StageName.PROMPT: Signature({prompt[0]: (I64, prompt[1])}, {"embeddings": (FLOAT, ("R", prompt[2], "width"))}),
        StageName.TOKENS: Signature(
            {"x": patch, "rows": rows, **(place if text else {})},
            {"tokens": patch, "embeddings": (FLOAT, ("R", per_step, "width"))},
        ),
        StageName.TIME: Signature({"times": (F32, ("N",))}, {"time_embeddings": (FLOAT, ("N", "head"))}),
        StageName.BACKBONE: Signature(
            {
                "embeddings": (FLOAT, ("R", "T", "width")),
                "positions": (I64, ("R", "T")),
                "mask": (BOOL, ("R", 1, "T", cache.length)),
                "cache_position": rows,
                **place,
                **{past: cached for past, _ in names},
            },
            {"condition": condition, **{present: cached for _, present in names}},
        ),
        StageName.MODULATION: Signature(
            {"time_embeddings": (FLOAT, ("M", "head")), "condition": condition},
            {name: (FLOAT, ("M", "R", per_step, name)) for name in tables},
        ),
        StageName.HEAD: Signature(
            {
                "x": patch,
                "coefficients": (F32, (3,)),
                "guidance": (F32, (1,)),
                "noise": patch,
                "rows": rows,
                **{name: (FLOAT, ("R", per_step, name)) for name in tables},
            },
            {"x_next": patch},
        ),
        **_window_signatures(model, modulations),
    }


def _window_signatures(model: ModelSpec, modulations: int) -> dict[str, Signature]:
    """The stages of the windowed sampler; their rows are the loop's, their draws those of the head without a window."""
    patch = (model.tokens_per_step, model.bits)
    rows, draws = (I64, ("R",)), (I64, ("B",))
    ahead: Tensors = {"evaluations": (I64, (1,)), "ahead": (I64, ("2*W",)), "rows": rows, "every": rows}
    window, state = (F32, ("W", "R", *patch)), (F32, ("B", *patch))
    tokens, tables = model.tokens_per_step, [f"{MODULATION}{i}" for i in range(modulations)]
    return {
        StageName.SETTLE: Signature(
            {
                "states": (F32, ("2*W", "B", *patch)),
                "evaluated": window,
                "reached": draws,
                "tolerance": (F32, (1,)),
                **ahead,
                **{f"{TABLE}{i}": (FLOAT, ("N", "R", tokens, name)) for i, name in enumerate(tables)},
            },
            {
                "settled": draws,
                "x": state,
                "window": window,
                **{name: (FLOAT, ("W", "R", tokens, name)) for name in tables},
            },
        ),
        StageName.EXTRAPOLATE: Signature(
            {
                **dict.fromkeys(("x", "clean", "last_x", "last_clean"), window),
                **dict.fromkeys(("reached", "last_reached"), draws),
                "schedule": (F32, ("K", 3)),
                "added": (F32, ("K", "B", *patch)),
                "weights": (F32, ("R",)),
                "free": (F32, (tokens,)),
                **ahead,
            },
            {
                "first": state,
                "base": (F32, ("2*W", "R", *patch)),
                "gain": (F32, ("2*W", "R", tokens, 1)),
                "slope": (F32, ("2*W", "B", 1, 1)),
                "keep": (F32, ("2*W", "B", tokens, 1)),
                "offset": (F32, ("2*W", "B", *patch)),
            },
        ),
        StageName.ADVANCE: Signature(
            {
                "x": state,
                "base": (F32, ("H", "B", *patch)),
                "gain": (F32, ("H", "B", tokens, 1)),
                "slope": (F32, ("B", 1, 1)),
                "keep": (F32, ("B", tokens, 1)),
                "offset": state,
            },
            {"x_next": state},
        ),
    }


def image_signatures(model: ModelSpec, size: ImageSize) -> dict[str, Signature]:
    """Decoder and encoder for images of one size, whose dimensions are numbers but for the batch."""
    sequence = (F32, ("B", size.patches_down, size.patches_across, model.patch_side**2, model.bits))
    pixels = (U8, ("B", size.height, size.width, 3))
    noise = {"noise": sequence} if model.decoder_noise else {}
    return {
        StageName.DECODER: Signature({"tokens": sequence, **noise}, {"pixels": pixels}),
        StageName.ENCODER: Signature({"pixels": pixels}, {"tokens": sequence}),
    }
