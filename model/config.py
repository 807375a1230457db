"""Hyper-parameters of the network, and their JSON as the reference writes it.

Knows shapes, nothing of weights. Field names are this project's; ``from_json`` and ``to_json`` translate to the
constructor arguments of the reference implementation, so that a published ``config.json`` is read as it is.
"""

from dataclasses import asdict, dataclass
from typing import Any

from bitdance_edge.model.errors import ModelError

ROTARY_BASE = 10_000.0


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
    def from_json(cls, ddconfig: dict[str, Any], gan_decoder: bool = False) -> "TokenizerConfig":
        """Read the reference's ``ddconfig``.

        Raises:
            ModelError: a key is missing or unknown, or asks for something no published model has.
        """
        fields = dict(ddconfig)
        for name, only in (("double_z", False), ("in_channels", 3), ("out_ch", 3)):
            if fields.pop(name, only) != only:
                raise ModelError(f"ddconfig.{name} is {ddconfig[name]!r}; only {only!r} is supported")
        fields.pop("resolution", None)
        try:
            config = cls(
                bits=fields.pop("z_channels"),
                channels=fields.pop("ch"),
                channel_multipliers=tuple(fields.pop("ch_mult")),
                blocks_per_level=fields.pop("num_res_blocks"),
                gan_decoder=gan_decoder,
            )
        except KeyError as missing:
            raise ModelError(f"ddconfig lacks {missing}; it needs z_channels, ch, ch_mult and num_res_blocks") from None
        if fields:
            raise ModelError(f"ddconfig holds unknown keys {sorted(fields)}; remove them or correct their spelling")
        return config

    def to_json(self) -> dict[str, Any]:
        return {
            "double_z": False,
            "z_channels": self.bits,
            "in_channels": 3,
            "out_ch": 3,
            "ch": self.channels,
            "ch_mult": list(self.channel_multipliers),
            "num_res_blocks": self.blocks_per_level,
        }


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
        if self.blocks % self.blocks_per_adaln:
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
    def text_to_image(cls, fields: dict[str, Any]) -> "HeadConfig":
        """Read ``vision_head_config.json``: attention heads of 128, output in (-1, 1)."""
        return cls(
            bits=fields["ch_target"],
            condition_width=fields["ch_cond"],
            width=fields["ch_latent"],
            blocks=fields["depth_latent"],
            adaln_groups=fields["depth_adanln"],
            tokens_per_step=fields["parallel_num"],
            head_dim=128,
            swiglu=fields.get("use_swiglu", False),
            bounded=True,
        )


@dataclass(frozen=True, kw_only=True)
class SamplingDefaults:
    """What a request gets where it does not say otherwise."""

    steps: int
    guidance: float
    guidance_schedule: str  # "linear" over the patches, or "constant"
    sampler: str = "sde"  # or "ode": without noise


def optional_defaults(fields: dict[str, Any] | None) -> SamplingDefaults | None:
    return None if fields is None else SamplingDefaults(**fields)


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
    time_schedule: str  # training times: "logit_normal" or "uniform"
    time_mean: float
    time_std: float
    targets_per_token: int  # noisy copies of each target in a training step
    class_names: tuple[str, ...]  # empty where the classes are just numbers
    sampling: SamplingDefaults
    published_sampling: SamplingDefaults | None = None  # where a study chose other defaults since

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
        """(height, width) in pixels of the images it makes."""
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
        """Keys and values of one image; the last patch is never an input."""
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
    def from_json(cls, fields: dict[str, Any]) -> "GeneratorConfig":
        """Read the reference's constructor arguments, as in ``config.json``.

        Raises:
            ModelError: a key is missing or unknown, or holds what no published model has.
        """
        left = {**REFERENCE_DEFAULTS, **fields}
        for key in TRAINING_ONLY:
            left.pop(key, None)
        for key, allowed in CHOICES.items():
            if left[key] not in allowed:
                raise ModelError(f"{key} is {left[key]!r}; allowed is {' or '.join(map(repr, allowed))}")
        try:
            tokenizer = {"z_channels": left["latent_dim"], **left.pop("ddconfig")}
            config = cls(
                tokenizer=TokenizerConfig.from_json(tokenizer, left.pop("gan_decoder")),
                patch_order=left.pop("parallel_mode") == "patch",
                class_names=tuple(left.pop("class_names")),
                sampling=SamplingDefaults(**left.pop("sampling")),
                published_sampling=optional_defaults(left.pop("published_sampling", None)),
                **{name: _typed(cls, name, left.pop(key)) for name, key in PUBLISHED_KEYS.items()},
            )
            stated = {key: left.pop(key) for key in ("latent_dim", "down_size", "patch_size") if key in left}
        except KeyError as missing:
            raise ModelError(f"the model configuration lacks {missing}; compare it with a published one") from None
        except TypeError as wrong:
            raise ModelError(f"the model configuration's sampling settings are wrong: {wrong}") from None
        built = {"latent_dim": config.bits, "down_size": config.tokenizer.downsampling, "patch_size": 1}
        for key, value in stated.items():
            if value != built[key]:
                raise ModelError(f"{key} is {value}, but the tokenizer in 'ddconfig' gives {built[key]}")
        if left:
            raise ModelError(f"the model configuration holds unknown keys {sorted(left)}; remove or correct them")
        return config

    def to_json(self) -> dict[str, Any]:
        return {
            **{key: getattr(self, name) for name, key in PUBLISHED_KEYS.items()},
            "latent_dim": self.bits,
            "down_size": self.tokenizer.downsampling,
            "patch_size": 1,
            "parallel_mode": "patch" if self.patch_order else "standard",
            "ddconfig": self.tokenizer.to_json(),
            "gan_decoder": self.tokenizer.gan_decoder,
            "class_names": list(self.class_names),
            "sampling": asdict(self.sampling),
            **({"published_sampling": asdict(self.published_sampling)} if self.published_sampling else {}),
        }


# Fields of GeneratorConfig that the reference has under a name of its own.
PUBLISHED_KEYS = {
    "width": "dim",
    "layers": "n_layer",
    "heads": "n_head",
    "class_tokens": "cls_token_num",
    "num_classes": "num_classes",
    "resolution": "resolution",
    "tokens_per_step": "parallel_num",
    "head_width": "diff_dim",
    "head_blocks": "diff_layers",
    "head_adaln_groups": "diff_adanln_layers",
    "time_shift": "time_shift",
    "time_schedule": "time_schedule",
    "time_mean": "P_mean",
    "time_std": "P_std",
    "targets_per_token": "diff_batch_mul",
}
# What the reference's constructors assume, and for the keys that are ours what its sampling script does.
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
    "gan_decoder": False,
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
CHOICES = {"parallel_mode": ("standard", "patch"), "time_schedule": ("logit_normal", "uniform")}


def _typed(record: type, name: str, value: Any) -> Any:
    """``value`` as the field's type; sizes are at least 1."""
    wanted = record.__annotations__[name]
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not wanted or (wanted is int and value < 1):
        allowed = "a whole number from 1" if wanted is int else f"a {wanted.__name__}"
        raise ModelError(f"{PUBLISHED_KEYS[name]} is {value!r}; it must be {allowed}")
    return value
