"""Recipes: all settings of a training as data. Knows neither torch nor images.

A recipe is validated once, when it is made; ``overridden`` applies ``NAME=VALUE`` settings of the command line.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

from bitdance_edge.training.errors import TrainingError

SHOWN = 60  # characters of a refused value that its message repeats
# The most that a setting may be, so that a slip of the keyboard is refused before anything is made of it.
MOST = {
    **dict.fromkeys(("steps", "warmup_steps", "score_every", "save_every"), 10**9),
    **dict.fromkeys(("batch_size", "accumulation"), 2**20),
    **dict.fromkeys(("layers", "head_blocks", "head_adaln_groups", "blocks_per_level"), 1024),
    "seed": 2**63 - 1,
}
MOST_OTHERS = 65_536  # of a width, a number of heads
MOST_NUMBER = 1e6
MOST_MULTIPLIERS, MOST_MULTIPLIER = 12, 64
MAY_BE_NONE = ("warmup_steps", "seed", "lora_rank")  # whole numbers from 0; the others are from 1
DATA = ("digits", "shapes", "given")  # scikit-learn's digits, our own drawings of colored shapes, the user's


@dataclass(frozen=True, kw_only=True)
class TrainingRecipe:
    """Settings that all recipes share: the images' size and augmentation, the schedule."""

    data: str  # one of DATA; used where no other data are given
    size: int  # side of the square images, pixels
    steps: int
    batch_size: int  # images a step, over all processes
    accumulation: int  # parts of a step's images that go through the network one after another
    learning_rate: float
    warmup_steps: int
    constant_share: float  # of the steps, before the rate falls
    last_rate: float  # at the end, as a share of the learning rate
    weight_decay: float
    clip_norm: float
    ema_decay: float
    seed: int
    score_every: int  # steps between held-out scores
    save_every: int  # steps between resumable states
    rotation: float  # augmentation: largest angle in degrees, either way
    scaling: float  # largest change of size, as a share
    shift: float  # largest shift in pixels, either way
    mirror: bool  # swap left and right at random; wrong for digits and letters

    def __post_init__(self) -> None:
        for name in (field.name for field in fields(self)):
            self._require_in_range(name, getattr(self, name))
        self._require("data", self.data in DATA, f"one of {', '.join(DATA)}")
        for name in ("weight_decay", "rotation", "shift"):
            self._require(name, getattr(self, name) >= 0, "0 or more")
        for name in ("learning_rate", "clip_norm"):
            self._require(name, getattr(self, name) > 0, "above 0")
        for name in ("constant_share", "last_rate"):
            self._require(name, 0 <= getattr(self, name) <= 1, "in [0, 1]")
        for name in ("ema_decay", "scaling"):
            self._require(name, 0 <= getattr(self, name) < 1, "in [0, 1)")
        self._require("warmup_steps", self.warmup_steps <= self.steps // 2, f"at most half of the {self.steps} steps")
        divides = self.batch_size % self.accumulation == 0
        self._require("accumulation", divides, f"a divisor of the batch_size {self.batch_size}")

    def _require_in_range(self, name: str, value: Any) -> None:
        if isinstance(value, tuple):
            holds = 1 <= len(value) <= MOST_MULTIPLIERS and all(1 <= each <= MOST_MULTIPLIER for each in value)
            self._require(name, holds, f"1 to {MOST_MULTIPLIERS} whole numbers from 1 to {MOST_MULTIPLIER}")
        elif isinstance(value, float):
            self._require(name, abs(value) <= MOST_NUMBER, f"a number from {-MOST_NUMBER:g} to {MOST_NUMBER:g}")
        elif isinstance(value, int) and not isinstance(value, bool):
            least, most = int(name not in MAY_BE_NONE), MOST.get(name, MOST_OTHERS)
            self._require(name, value >= least, f"{least} or more")
            self._require(name, value <= most, f"{most} or less")

    def _require(self, name: str, holds: bool, allowed: str) -> None:
        if not holds:
            shown = repr(getattr(self, name))
            shown = shown if len(shown) <= SHOWN else f"{shown[:SHOWN]}..."
            raise TrainingError(f"{name} is {shown}; it must be {allowed}. Use --set {name}=...")


@dataclass(frozen=True, kw_only=True)
class TokenizerRecipe(TrainingRecipe):
    """Binary autoencoder (paper section 3.1), trained on pixels alone: no perceptual and no adversarial loss."""

    bits: int
    channels: int
    channel_multipliers: tuple[int, ...]
    blocks_per_level: int
    group_bits: int  # bits of one group of the entropy loss
    entropy_weight: float
    commitment_weight: float
    flip_rate: float  # bits flip before decoding with probability u * flip_rate, u uniform per bit

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("bits", self.bits % self.group_bits == 0, f"a multiple of {self.group_bits}")
        for name in ("entropy_weight", "commitment_weight"):
            self._require(name, getattr(self, name) >= 0, "0 or more")
        self._require("flip_rate", 0 <= self.flip_rate < 1, "in [0, 1)")
        downsampling = 2 ** (len(self.channel_multipliers) - 1)
        self._require("size", self.size % downsampling == 0, f"a multiple of the {downsampling} pixels of a token")


@dataclass(frozen=True, kw_only=True)
class FlowRecipe(TrainingRecipe):
    """Backbone and diffusion head (paper sections 3.2 and 3.3) over a trained tokenizer, with any condition."""

    tokens_per_step: int
    width: int
    layers: int
    heads: int
    head_width: int
    head_blocks: int
    head_adaln_groups: int
    targets_per_token: int  # noisy copies of each target in a step
    time_mean: float  # training times are sigmoid(mean + std * normal)
    time_std: float
    flip_rate: float  # input bits flip with probability u * flip_rate, u uniform per bit
    sampling_steps: int  # defaults written into the checkpoint
    guidance: float
    linear_guidance: bool  # growing over the patches, from none at the first; else the same for all

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("tokens_per_step", self.tokens_per_step in (1, 4, 16, 64), "1, 4, 16 or 64")
        self._require("flip_rate", 0 <= self.flip_rate < 1, "in [0, 1)")
        self._require("guidance", self.guidance >= 1, "1 (none) or more")


@dataclass(frozen=True, kw_only=True)
class GeneratorRecipe(FlowRecipe):
    """Class-conditional generator (paper section 4.1)."""

    class_tokens: int
    class_dropout: float  # share of the labels replaced by "no class"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("class_dropout", 0 <= self.class_dropout < 1, "in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class FinetuneRecipe(TrainingRecipe):
    """Training of a finished generator on other images; the sizes of the network are the checkpoint's."""

    targets_per_token: int  # noisy copies of each target in a step
    condition_dropout: float  # share of the classes or prompts replaced by none
    flip_rate: float  # input bits flip with probability u * flip_rate, u uniform per bit
    lora_rank: int  # 0: all weights are trained; else low-rank additions to them (arxiv.org/abs/2106.09685)
    lora_alpha: float  # the additions are multiplied by lora_alpha / lora_rank

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("data", self.data == "given", "given")
        self._require("lora_alpha", self.lora_alpha > 0, "above 0")
        for name in ("condition_dropout", "flip_rate"):
            self._require(name, 0 <= getattr(self, name) < 1, "in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class TextRecipe(FlowRecipe):
    """Text-to-image generator with a small Qwen3 backbone (paper section 4.2)."""

    kv_heads: int
    head_dim: int
    mlp_width: int
    max_prompt: int  # longest prompt in tokens, including the chat template
    prompt_dropout: float  # share of the prompts replaced by the unconditional one

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("data", self.data != "digits", "shapes or given, which have captions")
        self._require("tokens_per_step", self.tokens_per_step > 1, "4, 16 or 64")
        self._require("prompt_dropout", 0 <= self.prompt_dropout < 1, "in [0, 1)")


AnyRecipe = TypeVar("AnyRecipe", bound=TrainingRecipe)


def overridden(recipe: AnyRecipe, settings: Iterable[str]) -> AnyRecipe:
    """Return the recipe with ``NAME=VALUE`` settings applied.

    Where they change the number of steps alone, the warm-up keeps its share of them, and is never longer.

    Raises:
        TrainingError: a name is unknown, or a value has another type or is not allowed.
    """
    changes: dict[str, Any] = {}
    for setting in settings:
        name, _, text = setting.partition("=")
        if name not in (known := [field.name for field in fields(recipe)]):
            raise TrainingError(f"no setting {name[:SHOWN]!r} in {setting[:SHOWN]!r}; there are {', '.join(known)}")
        changes[name] = _parsed(name, text, getattr(recipe, name))
    if "steps" in changes and "warmup_steps" not in changes and changes["steps"] >= 1:
        steps = min(changes["steps"], recipe.steps)
        changes["warmup_steps"] = min(round(steps / recipe.steps * recipe.warmup_steps), changes["steps"] // 2)
    return replace(recipe, **changes)


def _parsed(name: str, text: str, example: Any) -> Any:
    """``text`` as the type of ``example``."""
    try:
        if isinstance(example, bool):
            return {"true": True, "false": False}[text.lower()]
        if isinstance(example, tuple):
            return tuple(int(part) for part in text.split(","))
        value = type(example)(text)
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError
        return value
    except (ValueError, KeyError):
        raise TrainingError(f"{name} is {text[:SHOWN]!r}; write it like {_shown(example)}") from None


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value).lower()
