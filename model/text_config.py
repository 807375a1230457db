"""Hyper-parameters of the text-to-image network, read from the JSON files that stand in a published folder.

Knows shapes, nothing of weights or files. What is ours (image sizes, sampling defaults, longest prompt) stands in
``config.json`` under ``bitdance``; a published folder has no such entry and gets the authors' settings.
"""

from dataclasses import asdict, dataclass
from typing import Any

from bitdance_edge.model.config import HeadConfig, SamplingDefaults, TokenizerConfig, optional_defaults
from bitdance_edge.model.errors import ModelError

# (height, width) in pixels, as released (paper section 4.2, modeling/t2i_pipeline.py of the authors' code)
SIZES_1024 = (
    (1024, 1024),
    *((2048, 512), (1920, 512), (1536, 640), (1280, 768), (1152, 896)),
    *((512, 2048), (512, 1920), (640, 1536), (768, 1280), (896, 1152)),
)
SIZES_512 = ((512, 512), (1024, 256), (896, 256), (640, 384), (256, 1024), (256, 896), (384, 640))
PUBLISHED_SAMPLING = SamplingDefaults(steps=50, guidance=7.5, guidance_schedule="constant")
PUBLISHED_MAX_PROMPT = 512
PUBLISHED_EXAMPLE = "a lighthouse on a cliff above a stormy sea"


@dataclass(frozen=True, kw_only=True)
class QwenConfig:
    """Qwen3: grouped-query attention, RMSNorm on queries and keys, rotary embedding over one dimension."""

    vocabulary: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp_width: int
    rotary_base: float
    norm_eps: float

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise ModelError(
                f"{self.heads} attention heads cannot share {self.kv_heads} key-value heads; "
                "num_attention_heads must be a multiple of num_key_value_heads"
            )

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "QwenConfig":
        """Read the language model's ``config.json``.

        Raises:
            ModelError: another architecture, a missing key, or a choice that no Qwen3 release makes.
        """
        for key, only in QWEN_CHOICES.items():
            if fields.get(key, only) != only:
                raise ModelError(f"{key} is {fields[key]!r} in config.json; only {only!r} is supported")
        try:
            sizes = {name: _size(key, fields[key]) for name, key in QWEN_KEYS.items()}
            return cls(
                **sizes,
                head_dim=_size("head_dim", fields.get("head_dim") or sizes["width"] // sizes["heads"]),
                rotary_base=_rotary_base(fields),
                norm_eps=float(fields["rms_norm_eps"]),
            )
        except KeyError as missing:
            raise ModelError(f"config.json lacks {missing}; compare it with that of a published model") from None

    def to_json(self) -> dict[str, Any]:
        return {
            "architectures": ["Qwen3ForCausalLM"],
            **QWEN_CHOICES,
            **{key: getattr(self, name) for name, key in QWEN_KEYS.items()},
            "head_dim": self.head_dim,
            "rope_theta": self.rotary_base,
            "rms_norm_eps": self.norm_eps,
            "tie_word_embeddings": True,
        }


QWEN_KEYS = {
    "vocabulary": "vocab_size",
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "mlp_width": "intermediate_size",
}
QWEN_CHOICES = {
    "model_type": "qwen3",
    "attention_bias": False,
    "hidden_act": "silu",
    "rope_scaling": None,
    "use_sliding_window": False,
}


@dataclass(frozen=True, kw_only=True)
class TextToImageConfig:
    """Text-to-image BitDance (paper section 4.2)."""

    backbone: QwenConfig
    head: HeadConfig
    tokenizer: TokenizerConfig
    sizes: tuple[tuple[int, int], ...]  # (height, width) in pixels; the first is the default
    max_prompt: int  # longest prompt in tokens, chat template included
    example: str  # a prompt of words that the model was trained on
    time_shift: float
    time_schedule: str  # training times: "logit_normal" or "uniform"
    time_mean: float
    time_std: float
    targets_per_token: int  # noisy copies of each target in a training step
    sampling: SamplingDefaults
    published_sampling: SamplingDefaults | None = None  # where a study chose other defaults since

    def __post_init__(self) -> None:
        if self.patch_side**2 != self.tokens_per_step:
            raise ModelError(
                f"tokens per step (parallel_num) is {self.tokens_per_step}; it must be a square: 4, 16, 64"
            )
        if self.head.condition_width != self.backbone.width:
            raise ModelError(
                f"the head takes a condition of width {self.head.condition_width} (ch_cond), but the language model's "
                f"hidden_size is {self.backbone.width}: these files do not belong together"
            )
        if self.head.bits != self.tokenizer.bits:
            raise ModelError(
                f"the head draws {self.head.bits} bits a token (ch_target), the autoencoder has {self.tokenizer.bits} "
                "(z_channels): these files do not belong together"
            )
        if self.backbone.width % 4:
            raise ModelError(f"hidden_size is {self.backbone.width}; the position embedding needs a multiple of 4")
        for height, width in self.sizes:
            self.require_size(height, width)

    @property
    def tokens_per_step(self) -> int:
        return self.head.tokens_per_step

    @property
    def patch_side(self) -> int:
        return int(self.tokens_per_step**0.5)

    @property
    def published(self) -> SamplingDefaults:
        return self.published_sampling or self.sampling

    @property
    def bits(self) -> int:
        return self.tokenizer.bits

    @property
    def patch_pixels(self) -> int:
        """Pixels along one side of a patch."""
        return self.tokenizer.downsampling * self.patch_side

    @property
    def prompt_tokens(self) -> int:
        """Positions of the longest prompt: text, start of the image, its height and width, the queries."""
        return self.max_prompt + 3 + self.tokens_per_step - 1

    @property
    def largest_side(self) -> int:
        """Tokens along the longest side of any size."""
        return max(max(size) for size in self.sizes) // self.tokenizer.downsampling

    @property
    def cache_length(self) -> int:
        """Keys and values of one image; the last patch is never an input."""
        return self.prompt_tokens + max(self.tokens(*size) for size in self.sizes) - self.tokens_per_step

    def tokens(self, height: int, width: int) -> int:
        """Tokens of an image of this size in pixels."""
        return height * width // self.tokenizer.downsampling**2

    def require_size(self, height: int, width: int) -> None:
        if min(height, width) < 1 or height % self.patch_pixels or width % self.patch_pixels:
            raise ModelError(
                f"size {height}x{width} is not a whole number of patches; height and width must be multiples of "
                f"{self.patch_pixels} pixels"
            )

    @classmethod
    def from_json(
        cls, language: dict[str, Any], head: dict[str, Any], autoencoder: dict[str, Any]
    ) -> "TextToImageConfig":
        """Read ``config.json``, ``vision_head_config.json`` and ``ae_config.json``.

        Raises:
            ModelError: a key is missing, or the three do not belong together.
        """
        ours = dict(language.get("bitdance", {}))
        try:
            head_config = HeadConfig.text_to_image(head)
            tokenizer = TokenizerConfig.from_json(autoencoder["ddconfig"], autoencoder.get("gan_decoder", False))
            config = cls(
                backbone=QwenConfig.from_json(language),
                head=head_config,
                tokenizer=tokenizer,
                sizes=tuple(
                    (int(height), int(width))
                    for height, width in ours.pop("sizes", _published_sizes(head_config, tokenizer))
                ),
                max_prompt=_size("bitdance.max_prompt", ours.pop("max_prompt", PUBLISHED_MAX_PROMPT)),
                example=_text("bitdance.example", ours.pop("example", PUBLISHED_EXAMPLE)),
                time_shift=float(head.get("time_shift", 1.0)),
                time_schedule=head.get("time_schedule", "logit_normal"),
                time_mean=float(head.get("P_mean", 0.0)),
                time_std=float(head.get("P_std", 1.0)),
                targets_per_token=_size("diff_batch_mul", head.get("diff_batch_mul", 1)),
                sampling=SamplingDefaults(**ours.pop("sampling", asdict(PUBLISHED_SAMPLING))),
                published_sampling=optional_defaults(ours.pop("published_sampling", None)),
            )
        except KeyError as missing:
            raise ModelError(
                f"the configuration of head or autoencoder lacks {missing}; compare it with a published one"
            ) from None
        except (TypeError, ValueError) as wrong:
            raise ModelError(f"the 'bitdance' entry of config.json is wrong: {wrong}") from None
        if ours:
            raise ModelError(f"the 'bitdance' entry of config.json holds unknown keys {sorted(ours)}; remove them")
        return config

    def language_json(self) -> dict[str, Any]:
        """``config.json`` of the language model, with what is ours under ``bitdance``."""
        ours = {
            "sizes": [list(size) for size in self.sizes],
            "max_prompt": self.max_prompt,
            "example": self.example,
            "sampling": asdict(self.sampling),
            **({"published_sampling": asdict(self.published_sampling)} if self.published_sampling else {}),
        }
        return {**self.backbone.to_json(), "bitdance": ours}

    def head_json(self) -> dict[str, Any]:
        """``vision_head_config.json``."""
        return {
            "ch_target": self.head.bits,
            "ch_cond": self.head.condition_width,
            "ch_latent": self.head.width,
            "depth_latent": self.head.blocks,
            "depth_adanln": self.head.adaln_groups,
            "parallel_num": self.head.tokens_per_step,
            "use_swiglu": self.head.swiglu,
            "time_shift": self.time_shift,
            "time_schedule": self.time_schedule,
            "P_mean": self.time_mean,
            "P_std": self.time_std,
            "diff_batch_mul": self.targets_per_token,
        }

    def autoencoder_json(self) -> dict[str, Any]:
        """``ae_config.json``."""
        return {"ddconfig": self.tokenizer.to_json(), "gan_decoder": self.tokenizer.gan_decoder}


def _published_sizes(head: HeadConfig, tokenizer: TokenizerConfig) -> list[tuple[int, int]]:
    """The released sizes that are whole patches of this model."""
    released = SIZES_1024 if head.tokens_per_step == 64 else (*SIZES_1024, *SIZES_512)
    side = tokenizer.downsampling * int(head.tokens_per_step**0.5)
    return [size for size in released if not size[0] % side and not size[1] % side]


def _size(key: str, value: Any) -> int:
    if type(value) is not int or value < 1:
        raise ModelError(f"{key} is {value!r}; it must be a whole number from 1")
    return value


def _text(key: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ModelError(f"{key} is {value!r}; it must be a prompt")
    return value


def _rotary_base(fields: dict[str, Any]) -> float:
    """``rope_theta``, which newer releases of the library that wrote the file keep under ``rope_parameters``."""
    parameters = fields.get("rope_parameters") or {}
    if parameters.get("rope_type", "default") != "default":
        raise ModelError(f"rope_type is {parameters['rope_type']!r} in config.json; only 'default' is supported")
    return float(parameters["rope_theta"] if "rope_theta" in parameters else fields["rope_theta"])
