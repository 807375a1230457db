"""A tokenizer by itself, as a bundle has it: images of some sizes to tokens in raster order, and back."""

from dataclasses import dataclass

import torch
from torch import nn

from bitdance_edge.model.config import TokenizerConfig
from bitdance_edge.model.errors import ModelError
from bitdance_edge.model.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class TokenizerModelConfig:
    """The tokenizer's sizes, and those of its images as (height, width) in pixels, the first the default."""

    tokenizer: TokenizerConfig
    sizes: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        pixels = self.tokenizer.downsampling
        for height, width in self.sizes:
            if height % pixels or width % pixels or not height or not width:
                raise ModelError(
                    f"size {width}x{height}: this tokenizer has {pixels}x{pixels} pixels a token, so width and height "
                    f"must be multiples of {pixels}"
                )

    @property
    def bits(self) -> int:
        return self.tokenizer.bits


class TokenizerModel(nn.Module):
    """Encoder and decoder only; ``patch_side`` is that of raster order."""

    patch_side = 1

    def __init__(self, config: TokenizerModelConfig) -> None:
        super().__init__()
        self.config = config
        self.tokenizer = Tokenizer(config.tokenizer)

    @classmethod
    def of(cls, tokenizer: Tokenizer, sizes: tuple[tuple[int, int], ...]) -> "TokenizerModel":
        """A loaded tokenizer, for images of these sizes, (height, width) each."""
        config = TokenizerModelConfig(tokenizer=tokenizer.config, sizes=sizes)
        with torch.device("meta"):
            model = cls(config)
        model.tokenizer = tokenizer
        return model.eval().requires_grad_(False)
