"""Hyper-parameters of tokenizer and head, and sampling defaults: what both kinds of generator share.

Knows shapes, not weights. Field names are this project's; ``from_json`` and ``to_json`` translate from and to the
constructor arguments of the reference implementation, so that published JSON files are read unchanged.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bitdance_edge.model.errors import ModelError
from bitdance_edge.model.fields import Fields

SAMPLERS = ("sde", "ode")
GUIDANCE_SCHEDULES = ("constant", "linear")
TIME_SCHEDULES = ("logit_normal", "uniform")
# The most that a configuration may ask for, so that a damaged one is refused before anything is made of it.
MAX_LAYERS = 512
MAX_BITS = 4096
MAX_TOKENS_PER_STEP = 4096
MAX_SIDE = 8192  # pixels
MAX_POSITIONS = 131_072  # of the longest sequence
MAX_STEPS = 1000  # of the sampler; the runtime's limit
MAX_GUIDANCE = 100.0  # the runtime's limit
MAX_TIME = 100.0  # of the settings of the training times
MAX_COPIES = 1000  # of a target in a training step


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """Binary autoencoder (paper section 3.1)."""

    bits: int
    channels: int
    channel_multipliers: tuple[int, ...]
    blocks_per_level: int
    gan_decoder: bool

    def __post_init__(self) -> None:
        for multiplier in self.channel_multipliers:
            if self.channels * multiplier % 32:
                raise ModelError(
                    f"tokenizer level of {self.channels} * {multiplier} channels: "
                    "GroupNorm(32) needs a multiple of 32; choose ch and ch_mult so that every product is one"
                )

    @property
    def downsampling(self) -> int:
        """Pixels per token along one side."""
        return 2 ** (len(self.channel_multipliers) - 1)

    @classmethod
    def from_json(cls, values: Mapping[str, Any], source: str = "config.json") -> "TokenizerConfig":
        """Read the reference's JSON: the sizes in ``ddconfig``, and ``gan_decoder``.

        Raises:
            ModelError: a key is missing or unknown, or has a value that no published model has.
        """
        fields = Fields(values, source)
        levels = fields.part("ddconfig")
        for name, supported in (("double_z", False), ("in_channels", 3), ("out_ch", 3)):
            levels.only(name, supported)
        levels.drop("resolution")
        config = levels.build(
            cls,
            bits=levels.integer("z_channels", values.get("latent_dim"), most=MAX_BITS),
            channels=levels.integer("ch", most=4096),
            channel_multipliers=levels.integers("ch_mult", most=64, count=12),
            blocks_per_level=levels.integer("num_res_blocks", most=64),
            gan_decoder=fields.flag("gan_decoder", False),
        )
        levels.require_empty()
        return config

    def to_json(self) -> dict[str, Any]:
        """The two entries that ``from_json`` reads."""
        sizes = {
            "double_z": False,
            "z_channels": self.bits,
            "in_channels": 3,
            "out_ch": 3,
            "ch": self.channels,
            "ch_mult": list(self.channel_multipliers),
            "num_res_blocks": self.blocks_per_level,
        }
        return {"ddconfig": sizes, "gan_decoder": self.gan_decoder}


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """Diffusion head (paper section 3.3): an MLP for one token a step, a transformer for several."""

    bits: int
    condition_width: int
    width: int
    blocks: int
    adaln_groups: int
    tokens_per_step: int
    head_dim: int
    swiglu: bool
    bounded: bool  # text-to-image heads map their result into (-1, 1)

    def __post_init__(self) -> None:
        if int(self.tokens_per_step**0.5) ** 2 != self.tokens_per_step:
            raise ModelError(
                f"tokens per step (parallel_num) is {self.tokens_per_step}; it must be a square: 1, 4, 16, 64"
            )
        if self.blocks % self.blocks_per_adaln or self.blocks > self.adaln_groups * self.blocks_per_adaln:
            raise ModelError(
                f"head of {self.blocks} blocks cannot share {self.adaln_groups} adaLN groups; "
                "choose a number of groups that divides the number of blocks"
            )
        if self.tokens_per_step > 1 and self.width % self.head_dim:
            raise ModelError(f"head width {self.width} is not a multiple of its attention head size {self.head_dim}")

    @property
    def blocks_per_adaln(self) -> int:
        return max(1, self.blocks // self.adaln_groups)

    @classmethod
    def class_conditional(
        cls, *, bits: int, condition_width: int, width: int, blocks: int, adaln_groups: int, tokens_per_step: int
    ) -> "HeadConfig":
        """The choices that all ImageNet heads share: SwiGLU, attention heads of 64, unbounded output."""
        return cls(
            bits=bits,
            condition_width=condition_width,
            width=width,
            blocks=blocks,
            adaln_groups=adaln_groups,
            tokens_per_step=tokens_per_step,
            head_dim=64,
            swiglu=True,
            bounded=False,
        )

    @classmethod
    def text_to_image(cls, values: Mapping[str, Any], source: str = "vision_head_config.json") -> "HeadConfig":
        """Read the head's JSON: attention heads of 128, output in (-1, 1).

        Raises:
            ModelError: a key is missing, or has a value that no published model has.
        """
        fields = Fields(values, source)
        return fields.build(
            cls,
            bits=fields.integer("ch_target", most=MAX_BITS),
            condition_width=fields.integer("ch_cond"),
            width=fields.integer("ch_latent"),
            blocks=fields.integer("depth_latent", most=MAX_LAYERS),
            adaln_groups=fields.integer("depth_adanln", most=MAX_LAYERS),
            tokens_per_step=fields.integer("parallel_num", most=MAX_TOKENS_PER_STEP),
            head_dim=128,
            swiglu=fields.flag("use_swiglu", False),
            bounded=True,
        )


@dataclass(frozen=True, kw_only=True)
class SamplingDefaults:
    """The sampling settings of a request that names none."""

    steps: int
    guidance: float
    guidance_schedule: str  # one of GUIDANCE_SCHEDULES; "linear" is over the patches
    sampler: str = "sde"  # one of SAMPLERS; "ode" adds no noise

    @classmethod
    def from_json(cls, fields: Fields) -> "SamplingDefaults":
        """Read an entry ``sampling``.

        Raises:
            ModelError: a key is missing or unknown, or its value is not allowed.
        """
        defaults = cls(
            steps=fields.integer("steps", most=MAX_STEPS),
            guidance=fields.number("guidance", least=1, most=MAX_GUIDANCE),
            guidance_schedule=fields.choice("guidance_schedule", GUIDANCE_SCHEDULES),
            sampler=fields.choice("sampler", SAMPLERS, "sde"),
        )
        fields.require_empty()
        return defaults

    @classmethod
    def optional(cls, fields: Fields | None) -> "SamplingDefaults | None":
        return None if fields is None else cls.from_json(fields)
