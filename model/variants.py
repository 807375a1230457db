"""The published models by name, with their authors' settings (paper section 4, imagenet_gen README)."""

from dataclasses import replace

from bitdance_edge.model.class_config import GeneratorConfig
from bitdance_edge.model.config import SamplingDefaults, TokenizerConfig

_D16C32 = TokenizerConfig(
    bits=32, channels=256, channel_multipliers=(1, 1, 2, 2, 4), blocks_per_level=4, gan_decoder=False
)

_D32C128 = TokenizerConfig(
    bits=128, channels=128, channel_multipliers=(1, 1, 2, 2, 4, 8), blocks_per_level=4, gan_decoder=True
)

# d32c128: ae_d32c128_config.json as its port repeats it (huggingface.co/BiliSakura/BitDance-Tokenizer-diffusers).
# d32c256 differs in its bits alone, as the sizes of both files say. A config JSON next to the weights takes precedence.
TOKENIZERS = {
    "d16c32": _D16C32,
    "d32c128": _D32C128,
    "d32c256": replace(_D32C128, bits=256),
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
