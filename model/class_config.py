"""Hyper-parameters of the class-conditional generator, and its ``config.json`` as the reference writes it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from bitdance_edge.model.config import (
    MAX_COPIES,
    MAX_LAYERS,
    MAX_POSITIONS,
    MAX_SIDE,
    MAX_TIME,
    MAX_TOKENS_PER_STEP,
    TIME_SCHEDULES,
    HeadConfig,
    SamplingDefaults,
    TokenizerConfig,
)
from bitdance_edge.model.errors import ModelError
from bitdance_edge.model.fields import Fields
from bitdance_edge.model.json_file import shown

ROTARY_BASE = 10_000.0
PATCH_ORDERS = ("standard", "patch")
MAX_HEAD_DIM = 256


@dataclass(frozen=True, kw_only=True)
class GeneratorConfig:
    """Class-conditional BitDance (paper section 4.1)."""

    width: int
    layers: int
    heads: int
    class_tokens: int
    num_classes: int
    resolution: int
    tokens_per_step: int
    patch_order: bool  # next-patch order; False is plain raster order
    head_width: int
    head_blocks: int
    head_adaln_groups: int
    tokenizer: TokenizerConfig
    time_shift: float
    time_schedule: str  # of the training times, one of TIME_SCHEDULES
    time_mean: float
    time_std: float
    targets_per_token: int  # noisy copies of each target in a training step
    class_names: tuple[str, ...]  # empty where classes have numbers only
    sampling: SamplingDefaults
    published_sampling: SamplingDefaults | None = None  # where ``sampling`` was changed after publication

    def __post_init__(self) -> None:
        side = int(self.tokens_per_step**0.5)
        if side * side != self.tokens_per_step:
            raise ModelError(f"tokens per step (parallel_num) is {self.tokens_per_step}; it must be a square: 1, 4, 16")
        if self.resolution % (self.tokenizer.downsampling * side):
            raise ModelError(
                f"resolution {self.resolution} is not a multiple of {self.tokenizer.downsampling} pixels a token "
                f"times {side} tokens a patch side"
            )
        if self.width % (4 * self.heads):
            raise ModelError(f"width {self.width} over {self.heads} heads: a head must hold a multiple of 4 values")
        if self.head_dim > MAX_HEAD_DIM:
            raise ModelError(f"width {self.width} over {self.heads} heads: a head holds at most {MAX_HEAD_DIM} values")
        if self.cache_length > MAX_POSITIONS:
            raise ModelError(
                f"resolution {self.resolution} gives a sequence of {self.cache_length} tokens; it may have at most "
                f"{MAX_POSITIONS}"
            )
        if self.class_names and len(self.class_names) != self.num_classes:
            raise ModelError(f"{len(self.class_names)} class names for {self.num_classes} classes")

    @property
    def published(self) -> SamplingDefaults:
        return self.published_sampling or self.sampling

    @property
    def bits(self) -> int:
        return self.tokenizer.bits

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """(height, width) of the images, in pixels."""
        return ((self.resolution, self.resolution),)

    @property
    def grid(self) -> int:
        """Tokens along one side of the image."""
        return self.resolution // self.tokenizer.downsampling

    @property
    def steps(self) -> int:
        """Autoregressive steps for one image."""
        return self.grid**2 // self.tokens_per_step

    @property
    def prompt_tokens(self) -> int:
        """Class tokens, then the queries of the first patch."""
        return self.class_tokens + self.tokens_per_step - 1

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    @property
    def cache_length(self) -> int:
        """Positions of the cache for one image; the last patch is never an input."""
        return self.prompt_tokens + self.tokens_per_step * (self.steps - 1)

    @property
    def head(self) -> HeadConfig:
        return HeadConfig.class_conditional(
            bits=self.bits,
            condition_width=self.width,
            width=self.head_width,
            blocks=self.head_blocks,
            adaln_groups=self.head_adaln_groups,
            tokens_per_step=self.tokens_per_step,
        )

    @classmethod
    def from_json(cls, values: Mapping[str, Any], source: str = "config.json") -> "GeneratorConfig":
        """Read the reference's constructor arguments, as in ``config.json``.

        Raises:
            ModelError: a key is missing or unknown, or has a value that no published model has.
        """
        fields = Fields({**REFERENCE_DEFAULTS, **values}, source)
        tokenizer = TokenizerConfig.from_json(values, source)
        fields.drop("ddconfig", "gan_decoder", *TRAINING_ONLY)
        config = fields.build(
            cls,
            width=fields.integer("dim"),
            layers=fields.integer("n_layer", most=MAX_LAYERS),
            heads=fields.integer("n_head", most=1024),
            class_tokens=fields.integer("cls_token_num", most=4096),
            num_classes=fields.integer("num_classes", most=1_000_000),
            resolution=fields.integer("resolution", most=MAX_SIDE),
            tokens_per_step=fields.integer("parallel_num", most=MAX_TOKENS_PER_STEP),
            patch_order=fields.choice("parallel_mode", PATCH_ORDERS) == "patch",
            head_width=fields.integer("diff_dim"),
            head_blocks=fields.integer("diff_layers", most=MAX_LAYERS),
            head_adaln_groups=fields.integer("diff_adanln_layers", most=MAX_LAYERS),
            tokenizer=tokenizer,
            time_shift=fields.positive("time_shift", most=MAX_TIME),
            time_schedule=fields.choice("time_schedule", TIME_SCHEDULES),
            time_mean=fields.number("P_mean", least=-MAX_TIME, most=MAX_TIME),
            time_std=fields.number("P_std", least=0, most=MAX_TIME),
            targets_per_token=fields.integer("diff_batch_mul", most=MAX_COPIES),
            class_names=fields.texts("class_names"),
            sampling=SamplingDefaults.from_json(fields.part("sampling")),
            published_sampling=SamplingDefaults.optional(fields.optional_part("published_sampling")),
        )
        fields.build(lambda: config.head)
        for key, built in (("latent_dim", config.bits), ("down_size", tokenizer.downsampling), ("patch_size", 1)):
            if (stated := fields.left.pop(key, built)) != built:
                raise fields.error(f"{key} is {shown(stated)}, but the tokenizer in 'ddconfig' gives {built}")
        fields.require_empty()
        return config

    def to_json(self) -> dict[str, Any]:
        """The reference's constructor arguments."""
        return {
            "dim": self.width,
            "n_layer": self.layers,
            "n_head": self.heads,
            "cls_token_num": self.class_tokens,
            "num_classes": self.num_classes,
            "resolution": self.resolution,
            "parallel_num": self.tokens_per_step,
            "parallel_mode": "patch" if self.patch_order else "standard",
            "diff_dim": self.head_width,
            "diff_layers": self.head_blocks,
            "diff_adanln_layers": self.head_adaln_groups,
            "time_shift": self.time_shift,
            "time_schedule": self.time_schedule,
            "P_mean": self.time_mean,
            "P_std": self.time_std,
            "diff_batch_mul": self.targets_per_token,
            "latent_dim": self.bits,
            "down_size": self.tokenizer.downsampling,
            "patch_size": 1,
            **self.tokenizer.to_json(),
            "class_names": list(self.class_names),
            "sampling": asdict(self.sampling),
            **({"published_sampling": asdict(self.published_sampling)} if self.published_sampling else {}),
        }


# The defaults of the reference's constructors; for the keys that are ours, those of its sampling script.
REFERENCE_DEFAULTS = {
    "cls_token_num": 16,
    "num_classes": 1000,
    "parallel_num": 1,
    "parallel_mode": "standard",
    "time_shift": 1.0,
    "time_schedule": "logit_normal",
    "P_mean": 0.0,
    "P_std": 1.0,
    "diff_batch_mul": 1,
    "class_names": (),
    "sampling": {"steps": 100, "guidance": 4.0, "guidance_schedule": "linear"},
}
TRAINING_ONLY = (
    "kind",
    "grad_checkpointing",
    "class_dropout_prob",
    "trained_vae",
    "drop_rate",
    "perturb_schedule",
    "perturb_rate",
    "perturb_rate_max",
)
