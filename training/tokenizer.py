"""Training of the binary autoencoder: its loss, and its score, which is PSNR (paper section 3.1)."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from bitdance_edge.model import Tokenizer, TokenizerConfig
from bitdance_edge.model.losses import commitment_loss, entropy_loss, flip_bits, straight_through_bits
from bitdance_edge.model.tokenizer import image_from_bytes, image_to_bytes
from bitdance_edge.runtime.quality import psnr
from bitdance_edge.training.data import augment
from bitdance_edge.training.image_set import ImageSet
from bitdance_edge.training.recipes import TokenizerRecipe
from bitdance_edge.training.trainer import Objective

SCORE_BATCH = 256
PSNR_CAP = 150.0  # dB; an image without any error would make the mean infinite


class TokenizerObjective(Objective):
    """Absolute plus squared error of the pixels, entropy of the codes, distance of the latent from its bits.

    The paper's perceptual and adversarial losses are omitted: they need a pretrained network, and they sharpen textures
    that images of this size do not have.
    """

    score_name = "PSNR (dB)"

    def __init__(self, recipe: TokenizerRecipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.tokenizer = Tokenizer(
            TokenizerConfig(
                bits=recipe.bits,
                channels=recipe.channels,
                channel_multipliers=recipe.channel_multipliers,
                blocks_per_level=recipe.blocks_per_level,
                gan_decoder=False,
            )
        )

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        recipe = self.recipe
        pixels = augment(image_from_bytes(images), recipe)
        latent = self.tokenizer.encoder(pixels)
        bits = straight_through_bits(latent)
        if recipe.flip_rate:  # a generator's bits have errors; gradients ignore the flips
            bits = bits + (flip_bits(bits, recipe.flip_rate) - bits).detach()
        decoded = self.tokenizer.decode(bits)
        reconstruction = F.l1_loss(decoded, pixels) + F.mse_loss(decoded, pixels)
        entropy = entropy_loss(latent.float(), recipe.bits // recipe.group_bits)
        return reconstruction + recipe.entropy_weight * entropy + recipe.commitment_weight * commitment_loss(latent)

    def score(self, held_out: ImageSet) -> float:
        return mean_psnr(held_out.images, reconstruct(self.tokenizer, held_out.images))


@torch.no_grad()
def reconstruct(tokenizer: Tokenizer, images: Tensor) -> Tensor:
    """Encode and decode uint8 images ``[N, H, W, 3]``, in batches, on the tokenizer's device."""
    device = next(tokenizer.parameters()).device
    return torch.cat(
        [
            image_to_bytes(tokenizer.decode(tokenizer.encode(image_from_bytes(batch.to(device))))).cpu()
            for batch in images.split(SCORE_BATCH)
        ]
    )


@torch.no_grad()
def share_of_ones(tokenizer: Tokenizer, images: Tensor) -> list[float]:
    """Return the share of +1 of each bit over all tokens of uint8 images ``[N, H, W, 3]``."""
    bits = torch.cat([tokenizer.encode(image_from_bytes(batch)) for batch in images.split(SCORE_BATCH)])
    return [round(share, 3) for share in (bits > 0).float().mean(dim=(0, 2, 3)).tolist()]


def mean_psnr(images: Tensor, others: Tensor) -> float:
    """Return the mean over the images of their PSNR in dB, each at most ``PSNR_CAP``; uint8 ``[N, H, W, 3]`` both."""
    pairs = zip(images.numpy(), others.numpy(), strict=True)
    return float(np.mean([min(psnr(image, other), PSNR_CAP) for image, other in pairs]))
