"""Binary autoencoder: an image to tokens of -1 and +1, and back (paper section 3.1)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bitdance_edge.model.config import TokenizerConfig


def group_norm(channels: int, affine: bool = True) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6, affine=affine)


def quantize(latent: Tensor) -> Tensor:
    """Return +1 where the latent is above zero, else -1; an exact zero and a NaN give -1."""
    return torch.where(latent > 0, 1.0, -1.0).to(latent.dtype)


class ResidualBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1 = group_norm(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.norm2 = group_norm(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        if inputs != outputs:
            self.nin_shortcut = nn.Conv2d(inputs, outputs, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv1(F.silu(self.norm1(x)))
        hidden = self.conv2(F.silu(self.norm2(hidden)))
        return hidden + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class Upsampler(nn.Module):
    """3x3 convolution to four times the channels, then depth-to-space by 2 with the sub-pixel as the outer index."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 4 * channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        blocks = self.conv1(x).unflatten(1, (2, 2, -1))  # [B, dy, dx, C, H, W]
        return blocks.permute(0, 3, 4, 1, 5, 2).flatten(4, 5).flatten(2, 3)  # [B, C, 2H, 2W]


class AdaptiveGroupNorm(nn.Module):
    """GroupNorm whose scale and shift come from the spread and the mean of the image's bits."""

    def __init__(self, bits: int, channels: int) -> None:
        super().__init__()
        self.gn = group_norm(channels, affine=False)
        self.gamma = nn.Linear(bits, channels)
        self.beta = nn.Linear(bits, channels)

    def forward(self, x: Tensor, bits: Tensor) -> Tensor:
        bits = bits.flatten(2)  # [B, C, h*w]
        scale = self.gamma((bits.var(dim=-1) + 1e-6).sqrt())
        shift = self.beta(bits.mean(dim=-1))
        return scale[..., None, None] * self.gn(x) + shift[..., None, None]


class Level(nn.Module):
    """One resolution: its residual blocks, then the change to the next resolution, if any."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        blocks: int,
        downsample: nn.Module | None = None,
        upsample: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.block = nn.ModuleList(ResidualBlock(inputs if i == 0 else outputs, outputs) for i in range(blocks))
        self.downsample = downsample
        self.upsample = upsample

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        for step in (self.downsample, self.upsample):
            if step is not None:
                x = step(x)
        return x


class Encoder(nn.Module):
    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        widths = [config.channels * multiplier for multiplier in config.channel_multipliers]
        self.conv_in = nn.Conv2d(3, config.channels, 3, padding=1, bias=False)
        self.down = nn.ModuleList()
        for i, (inputs, outputs) in enumerate(zip([config.channels, *widths], widths, strict=False)):
            last = i == len(widths) - 1
            downsample = None if last else nn.Conv2d(outputs, outputs, 3, stride=2, padding=1)
            self.down.append(Level(inputs, outputs, config.blocks_per_level, downsample=downsample))
        self.mid_block = nn.ModuleList(ResidualBlock(widths[-1], widths[-1]) for _ in range(config.blocks_per_level))
        self.norm_out = group_norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], config.bits, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Encode images ``[B, 3, H, W]`` in [-1, 1] as latents ``[B, C, h, w]``, without taking the sign."""
        x = self.conv_in(image)
        for level in self.down:
            x = level(x)
        for block in self.mid_block:
            x = block(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Decoder(nn.Module):
    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.needs_noise = config.gan_decoder
        widths = [config.channels * multiplier for multiplier in config.channel_multipliers]
        self.conv_in = nn.Conv2d(config.bits * (2 if config.gan_decoder else 1), widths[-1], 3, padding=1)
        self.mid_block = nn.ModuleList(ResidualBlock(widths[-1], widths[-1]) for _ in range(config.blocks_per_level))
        self.up = nn.ModuleList()
        self.adaptive = nn.ModuleList()
        for i, outputs in enumerate(widths):
            inputs = widths[min(i + 1, len(widths) - 1)]
            upsample = Upsampler(outputs) if i > 0 else None
            self.up.append(Level(inputs, outputs, config.blocks_per_level, upsample=upsample))
            self.adaptive.append(AdaptiveGroupNorm(config.bits, inputs))
        self.norm_out = group_norm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, bits: Tensor, noise: Tensor | None = None) -> Tensor:
        """Decode bits ``[B, C, h, w]`` to images ``[B, 3, H, W]``, about in [-1, 1] and not clamped.

        ``noise``, standard normal with the shape of the bits, is for a ``gan_decoder`` only. None: it is drawn.
        """
        if self.needs_noise and noise is None:
            noise = torch.randn_like(bits)
        x = self.conv_in(bits if noise is None else torch.cat([bits, noise], dim=1))
        for block in self.mid_block:
            x = block(x)
        for level, adaptive in zip(reversed(self.up), reversed(self.adaptive), strict=True):
            x = level(adaptive(x, bits))
        return self.conv_out(F.silu(self.norm_out(x)))


class Tokenizer(nn.Module):
    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)

    def encode(self, image: Tensor) -> Tensor:
        """Encode images ``[B, 3, H, W]`` in [-1, 1] as bits ``[B, C, h, w]``, exactly -1 or +1."""
        return quantize(self.encoder(image))

    def decode(self, bits: Tensor, noise: Tensor | None = None) -> Tensor:
        return self.decoder(bits, noise)


def image_from_bytes(pixels: Tensor) -> Tensor:
    """Turn uint8 ``[B, H, W, 3]`` into float32 ``[B, 3, H, W]`` in [-1, 1]."""
    # The cast from uint8 comes first, and that to uint8 last: TensorRT has uint8 only as inputs and outputs.
    return (pixels.float().permute(0, 3, 1, 2) / 255 - 0.5) * 2


def image_to_bytes(image: Tensor) -> Tensor:
    """Turn float ``[B, 3, H, W]`` into uint8 ``[B, H, W, 3]``, clamped and truncated, computed in float32."""
    return (127.5 * image.float() + 128).clamp(0, 255).permute(0, 2, 3, 1).to(torch.uint8)
