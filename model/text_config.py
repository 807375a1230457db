"""Hyper-parameters of the text-to-image network, read from the three JSON files of a published folder.

Knows shapes, not weights or files. What this project adds (image sizes, sampling defaults, longest prompt) is the
entry ``bitdance`` of ``config.json``; a published folder has no such entry and gets the authors' settings.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from bitdance_edge.model.config import (
    MAX_COPIES,
    MAX_LAYERS,
    MAX_POSITIONS,
    MAX_SIDE,
    MAX_TIME,
    TIME_SCHEDULES,
    HeadConfig,
    SamplingDefaults,
    TokenizerConfig,
)
from bitdance_edge.model.errors import ModelError
from bitdance_edge.model.fields import Fields

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
FILES = ("config.json", "vision_head_config.json", "ae_config.json")  # language model, head, autoencoder


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
        if self.head_dim % 2:
            raise ModelError(f"head_dim is {self.head_dim}; the rotary embedding turns pairs, so it must be even")
        if self.heads % self.kv_heads:
            raise ModelError(
                f"{self.heads} attention heads cannot share {self.kv_heads} key-value heads; "
                "num_attention_heads must be a multiple of num_key_value_heads"
            )

    @classmethod
    def from_json(cls, values: Mapping[str, Any], source: str = "config.json") -> "QwenConfig":
        """Read the language model's ``config.json``.

        Raises:
            ModelError: another architecture, a missing key, or a value that no Qwen3 release has.
        """
        fields = Fields(values, source)
        for key, supported in QWEN_CHOICES.items():
            fields.only(key, supported)
        sizes = {name: fields.integer(key, most=QWEN_MOST[key]) for name, key in QWEN_KEYS.items()}
        rope = fields.optional_part("rope_parameters") or fields  # newer releases of the writing library nest them
        if rope is not fields:
            rope.only("rope_type", "default")
        if values.get("head_dim") is None:
            fields.drop("head_dim")
        return fields.build(
            cls,
            **sizes,
            head_dim=fields.integer("head_dim", sizes["width"] // sizes["heads"], most=1024),
            rotary_base=rope.positive("rope_theta", values.get("rope_theta"), most=1e12),
            norm_eps=fields.positive("rms_norm_eps", most=1.0),
        )

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
QWEN_MOST = {
    "vocab_size": 4_000_000,
    "hidden_size": 65_536,
    "num_hidden_layers": MAX_LAYERS,
    "num_attention_heads": 1024,
    "num_key_value_heads": 1024,
    "intermediate_size": 1_000_000,
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
    max_prompt: int  # longest prompt in tokens, including the chat template
    example: str  # a prompt with words of the training data
    time_shift: float
    time_schedule: str  # of the training times, one of TIME_SCHEDULES
    time_mean: float
    time_std: float
    targets_per_token: int  # noisy copies of each target in a training step
    sampling: SamplingDefaults
    published_sampling: SamplingDefaults | None = None  # where ``sampling`` was changed after publication

    def __post_init__(self) -> None:
        if not self.sizes:
            raise ModelError("no image size; give at least one, a whole number of patches in width and height")
        for height, width in self.sizes:
            self.require_size(height, width)
        if self.cache_length > MAX_POSITIONS:
            raise ModelError(
                f"a prompt of {self.max_prompt} tokens and the largest size give a sequence of {self.cache_length} "
                f"tokens; it may have at most {MAX_POSITIONS}: lower max_prompt, or omit the largest sizes"
            )

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
        """Positions of the cache for the largest image; the last patch is never an input."""
        return self.prompt_tokens + max(self.tokens(*size) for size in self.sizes) - self.tokens_per_step

    def tokens(self, height: int, width: int) -> int:
        """Tokens of an image of this size in pixels."""
        return height * width // self.tokenizer.downsampling**2

    def require_size(self, height: int, width: int) -> None:
        """Check a size in pixels.

        Raises:
            ModelError: a side is not a multiple of ``patch_pixels``.
        """
        if min(height, width) < 1 or height % self.patch_pixels or width % self.patch_pixels:
            raise ModelError(
                f"size {width}x{height} is not a whole number of patches; width and height must be multiples of "
                f"{self.patch_pixels} pixels"
            )

    @classmethod
    def from_json(
        cls,
        language: Mapping[str, Any],
        head: Mapping[str, Any],
        autoencoder: Mapping[str, Any],
        sources: tuple[str, str, str] = FILES,
    ) -> "TextToImageConfig":
        """Read the settings of the three files that ``sources`` names, as errors do.

        Raises:
            ModelError: a key is missing or has a value that is not allowed, or the three do not belong together.
        """
        head_config = HeadConfig.text_to_image(head, sources[1])
        tokenizer = TokenizerConfig.from_json(autoencoder, sources[2])
        backbone = QwenConfig.from_json(language, sources[0])
        _require_together(backbone, head_config, tokenizer, sources)
        ours = Fields(language, sources[0]).part("bitdance", {})
        times = Fields(head, sources[1])
        config = ours.build(
            cls,
            backbone=backbone,
            head=head_config,
            tokenizer=tokenizer,
            sizes=ours.pixel_sizes(
                "sizes",
                () if ours.left.get("sizes") is not None else _published_sizes(head_config, tokenizer, sources),
                multiple=tokenizer.downsampling * int(head_config.tokens_per_step**0.5),
                most=MAX_SIDE,
            ),
            max_prompt=ours.integer("max_prompt", PUBLISHED_MAX_PROMPT),
            example=ours.text("example", PUBLISHED_EXAMPLE),
            time_shift=times.positive("time_shift", 1.0, most=MAX_TIME),
            time_schedule=times.choice("time_schedule", TIME_SCHEDULES, "logit_normal"),
            time_mean=times.number("P_mean", 0.0, least=-MAX_TIME, most=MAX_TIME),
            time_std=times.number("P_std", 1.0, least=0, most=MAX_TIME),
            targets_per_token=times.integer("diff_batch_mul", 1, most=MAX_COPIES),
            sampling=SamplingDefaults.from_json(ours.part("sampling", asdict(PUBLISHED_SAMPLING))),
            published_sampling=SamplingDefaults.optional(ours.optional_part("published_sampling")),
        )
        ours.require_empty()
        return config

    def language_json(self) -> dict[str, Any]:
        """``config.json`` of the language model, with this project's settings under ``bitdance``."""
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
        return self.tokenizer.to_json()


def _require_together(
    backbone: QwenConfig, head: HeadConfig, tokenizer: TokenizerConfig, sources: tuple[str, str, str]
) -> None:
    """Refuse files of different models; each error names the files and fields that disagree."""
    language_file, head_file, autoencoder_file = sources
    apart = "these files do not belong together: copy the checkpoint again"
    if head.condition_width != backbone.width:
        raise ModelError(
            f"{head_file}: ch_cond is {head.condition_width}, but hidden_size of {language_file} is {backbone.width}; "
            f"{apart}"
        )
    if head.bits != tokenizer.bits:
        raise ModelError(
            f"{head_file}: ch_target is {head.bits}, but z_channels of {autoencoder_file} is {tokenizer.bits}; {apart}"
        )
    if backbone.width % 4:
        raise ModelError(
            f"{language_file}: hidden_size is {backbone.width}; the position embedding needs a multiple of 4"
        )


def _published_sizes(
    head: HeadConfig, tokenizer: TokenizerConfig, sources: tuple[str, str, str]
) -> list[tuple[int, int]]:
    """The released sizes that this model can cut into whole patches."""
    released = SIZES_1024 if head.tokens_per_step == 64 else (*SIZES_1024, *SIZES_512)
    side = tokenizer.downsampling * int(head.tokens_per_step**0.5)
    if fitting := [size for size in released if not size[0] % side and not size[1] % side]:
        return fitting
    raise ModelError(
        f"{sources[1]}: with a parallel_num of {head.tokens_per_step} a patch has {side} pixels a side, and none of "
        f"the released sizes is a whole number of them; name sizes as bitdance.sizes in {sources[0]}"
    )
