"""What tokenizer and generator are trained on (paper sections 3.1 and 3.3)."""

import torch
from torch import Tensor
from torch.nn import functional as F

from bitdance_edge.model.config import GeneratorConfig
from bitdance_edge.model.head import DiffusionHead
from bitdance_edge.model.sampler import shift_times, velocity
from bitdance_edge.model.text_config import TextToImageConfig
from bitdance_edge.model.tokenizer import quantize

ENTROPY_TEMPERATURE = 0.01


def straight_through_bits(latent: Tensor) -> Tensor:
    """The bits of the latent, through which gradients pass as if nothing had been rounded."""
    return latent + (quantize(latent) - latent).detach()


def commitment_loss(latent: Tensor) -> Tensor:
    """Mean squared distance of the latent ``[B, C, h, w]`` from its own bits."""
    return F.mse_loss(latent, quantize(latent).detach())


def entropy_loss(latent: Tensor, groups: int) -> Tensor:
    """Low where each token is sure of its code while the batch uses all codes.

    The codes of a group of C / groups bits are enumerated; their probabilities are softmax(2 * x * code / 0.01).
    The loss is the mean entropy of a token's codes minus the entropy of the batch's mean.
    """
    bits = latent.shape[1] // groups
    codes = torch.arange(2**bits, device=latent.device)
    codebook = ((codes[:, None] >> torch.arange(bits, device=latent.device)) & 1) * 2.0 - 1.0  # [2^bits, bits]
    x = latent.permute(0, 2, 3, 1).unflatten(-1, (groups, bits))  # [B, h, w, groups, bits]
    log_probabilities = F.log_softmax(2 * (x @ codebook.T) / ENTROPY_TEMPERATURE, dim=-1)
    probabilities = log_probabilities.exp()
    token_entropy = -(probabilities * log_probabilities).sum(-1).mean()
    mean = probabilities.flatten(0, -2).mean(0)
    batch_entropy = -(mean * (mean + 1e-5).log()).sum()
    return token_entropy - batch_entropy


def flip_bits(tokens: Tensor, max_rate: float) -> Tensor:
    """Flip each bit with probability ``u * max_rate``, u uniform per bit: what generated tokens may look like."""
    return torch.where(torch.rand_like(tokens) < max_rate * torch.rand_like(tokens), -tokens, tokens)


def drop_classes(classes: Tensor, rate: float, no_class: int) -> Tensor:
    """Replace each class by "no class" with the given probability, so that guidance has something to push away from."""
    dropped = torch.rand(classes.shape, device=classes.device) < rate
    return torch.where(dropped, no_class, classes)


def training_times(config: GeneratorConfig | TextToImageConfig, draw: Tensor) -> Tensor:
    """Times in (0, 1) from normal draws (``logit_normal``) or uniform draws (``uniform``), shifted as configured."""
    uniform = config.time_schedule == "uniform"
    times = draw if uniform else torch.sigmoid(draw * config.time_std + config.time_mean)
    return times if config.time_shift == 1.0 else shift_times(times, config.time_shift)


def flow_loss(head: DiffusionHead, condition: Tensor, target: Tensor, times: Tensor, noise: Tensor) -> Tensor:
    """Mean squared error of the velocity, as a number.

    Args:
        condition: ``[N, P, D]``; target: bits ``[N, P, C]``; times: ``[N]``; noise: standard normal ``[N, P, C]``.
    """
    t = times[:, None, None]
    noisy = (1 - t) * noise + t * target
    predicted = velocity(head(noisy, times, condition).float(), noisy, t)
    return F.mse_loss(predicted, velocity(target, noisy, t))
