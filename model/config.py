"""Hyper-parameters of the network, the published variants, and their JSON as the reference writes it.

Knows shapes, nothing of weights. Field names are this project's; ``from_json`` and ``to_json`` translate to the
constructor arguments of the reference implementation, so that a published ``config.json`` is read as it is.
"""

from dataclasses import dataclass, replace
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
    def bits(self) -> int:
        return self.tokenizer.bits

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
        left = dict(fields)
        for training_only in (
            "kind",
            "grad_checkpointing",
            "class_dropout_prob",
            "trained_vae",
            "drop_rate",
            "perturb_schedule",
            "perturb_rate",
            "perturb_rate_max",
        ):
            left.pop(training_only, None)
        if left.pop("patch_size", 1) != 1:
            raise ModelError(f"patch_size is {fields['patch_size']}; only 1 (one token a latent cell) is supported")
        order = left.pop("parallel_mode", "standard")
        if order not in ("standard", "patch"):
            raise ModelError(f"parallel_mode is {order!r}; allowed are 'standard' (raster) and 'patch'")
        schedule = left.pop("time_schedule", "logit_normal")
        if schedule not in ("logit_normal", "uniform"):
            raise ModelError(f"time_schedule is {schedule!r}; allowed are 'logit_normal' and 'uniform'")
        sampling = left.pop("sampling", {"steps": 100, "guidance": 4.0, "guidance_schedule": "linear"})
        try:
            config = cls(
                width=left.pop("dim"),
                layers=left.pop("n_layer"),
                heads=left.pop("n_head"),
                class_tokens=left.pop("cls_token_num", 16),
                num_classes=left.pop("num_classes", 1000),
                resolution=left.pop("resolution"),
                tokens_per_step=left.pop("parallel_num", 1),
                patch_order=order == "patch",
                head_width=left.pop("diff_dim"),
                head_blocks=left.pop("diff_layers"),
                head_adaln_groups=left.pop("diff_adanln_layers"),
                tokenizer=TokenizerConfig.from_json(
                    {"z_channels": left["latent_dim"], **left.pop("ddconfig")}, left.pop("gan_decoder", False)
                ),
                time_shift=float(left.pop("time_shift", 1.0)),
                time_schedule=schedule,
                time_mean=left.pop("P_mean", 0.0),
                time_std=left.pop("P_std", 1.0),
                targets_per_token=left.pop("diff_batch_mul", 1),
                class_names=tuple(left.pop("class_names", ())),
                sampling=SamplingDefaults(**sampling),
            )
        except KeyError as missing:
            raise ModelError(
                f"the model configuration lacks {missing}; compare it with a published config.json"
            ) from None
        except TypeError as wrong:
            raise ModelError(f"the model configuration's 'sampling' is wrong: {wrong}") from None
        latent_dim, down_size = left.pop("latent_dim"), left.pop("down_size", config.tokenizer.downsampling)
        if latent_dim != config.bits or down_size != config.tokenizer.downsampling:
            raise ModelError(
                f"latent_dim {latent_dim} and down_size {down_size} disagree with the tokenizer's "
                f"{config.bits} bits and {config.tokenizer.downsampling} pixels a token"
            )
        if left:
            raise ModelError(f"the model configuration holds unknown keys {sorted(left)}; remove or correct them")
        return config

    def to_json(self) -> dict[str, Any]:
        return {
            "dim": self.width,
            "n_layer": self.layers,
            "n_head": self.heads,
            "cls_token_num": self.class_tokens,
            "num_classes": self.num_classes,
            "resolution": self.resolution,
            "down_size": self.tokenizer.downsampling,
            "patch_size": 1,
            "latent_dim": self.bits,
            "parallel_num": self.tokens_per_step,
            "parallel_mode": "patch" if self.patch_order else "standard",
            "diff_dim": self.head_width,
            "diff_layers": self.head_blocks,
            "diff_adanln_layers": self.head_adaln_groups,
            "diff_batch_mul": self.targets_per_token,
            "time_shift": self.time_shift,
            "time_schedule": self.time_schedule,
            "P_mean": self.time_mean,
            "P_std": self.time_std,
            "ddconfig": self.tokenizer.to_json(),
            "gan_decoder": self.tokenizer.gan_decoder,
            "class_names": list(self.class_names),
            "sampling": {
                "steps": self.sampling.steps,
                "guidance": self.sampling.guidance,
                "guidance_schedule": self.sampling.guidance_schedule,
            },
        }


_D16C32 = TokenizerConfig(
    bits=32, channels=256, channel_multipliers=(1, 1, 2, 2, 4), blocks_per_level=4, gan_decoder=False
)

TOKENIZERS = {
    "d16c32": _D16C32,
    "d32c128": replace(_D16C32, bits=128, channel_multipliers=(1, 1, 2, 2, 4, 4)),
    "d32c256": replace(_D16C32, bits=256, channel_multipliers=(1, 1, 2, 2, 4, 4)),
}


def _imagenet(
    width: int,
    layers: int,
    heads: int,
    head_width: int,
    head_blocks: int,
    head_adaln_groups: int,
    tokens_per_step: int,
    guidance: float,
) -> GeneratorConfig:
    return GeneratorConfig(
        width=width,
        layers=layers,
        heads=heads,
        class_tokens=64,
        num_classes=1000,
        resolution=256,
        tokens_per_step=tokens_per_step,
        patch_order=tokens_per_step > 1,
        head_width=head_width,
        head_blocks=head_blocks,
        head_adaln_groups=head_adaln_groups,
        tokenizer=_D16C32,
        time_shift=1.0,
        time_schedule="logit_normal",
        time_mean=-0.8,
        time_std=0.8,
        targets_per_token=4,
        class_names=(),
        sampling=SamplingDefaults(steps=100, guidance=guidance, guidance_schedule="linear"),
    )


GENERATORS = {
    "B-1x": _imagenet(768, 24, 12, 768, 6, 2, 1, 3.2),
    "B-4x": _imagenet(768, 24, 12, 768, 6, 2, 4, 3.9),
    "B-16x": _imagenet(768, 24, 12, 768, 6, 2, 16, 6.1),
    "L-1x": _imagenet(1024, 32, 16, 1024, 8, 2, 1, 4.0),
    "H-1x": _imagenet(1280, 40, 20, 1280, 12, 3, 1, 4.55),
}
