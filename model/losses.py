"""The training losses of tokenizer and generator (paper sections 3.1 and 3.3)."""

import torch
from torch import Tensor
from torch.nn import functional as F

from bitdance_edge.model.class_config import GeneratorConfig
from bitdance_edge.model.head import DiffusionHead
from bitdance_edge.model.sampler import shift_times, velocity
from bitdance_edge.model.text_config import TextToImageConfig
from bitdance_edge.model.tokenizer import quantize

ENTROPY_TEMPERATURE = 0.01


def straight_through_bits(latent: Tensor) -> Tensor:
    """Return the bits of the latent; gradients pass through as if nothing were rounded."""
    return latent + (quantize(latent) - latent).detach()


def commitment_loss(latent: Tensor) -> Tensor:
    """Return the mean squared distance of the latent ``[B, C, h, w]`` from its own bits."""
    return F.mse_loss(latent, quantize(latent).detach())


def entropy_loss(latent: Tensor, groups: int) -> Tensor:
    """Return the mean entropy of a token's codes minus the entropy of their mean over the batch.

    It is low where each token is certain of its code and the batch uses all codes. The codes of a group of C / groups
    bits are enumerated, with probabilities softmax(2 * x * code / 0.01); the latent is ``[B, C, h, w]``.
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
    """Flip each bit with probability ``u * max_rate``, u uniform per bit, as errors of a generator would."""
    return torch.where(torch.rand_like(tokens) < max_rate * torch.rand_like(tokens), -tokens, tokens)


def drop_classes(classes: Tensor, rate: float, no_class: int) -> Tensor:
    """Replace each class by ``no_class`` with probability ``rate``, which trains the unconditional rows of guidance."""
    dropped = torch.rand(classes.shape, device=classes.device) < rate
    return torch.where(dropped, no_class, classes)


def training_times(config: GeneratorConfig | TextToImageConfig, draw: Tensor) -> Tensor:
    """Turn normal (``logit_normal``) or uniform (``uniform``) draws into times in (0, 1), shifted as configured."""
    uniform = config.time_schedule == "uniform"
    times = draw if uniform else torch.sigmoid(draw * config.time_std + config.time_mean)
    return times if config.time_shift == 1.0 else shift_times(times, config.time_shift)


def flow_loss(head: DiffusionHead, condition: Tensor, target: Tensor, times: Tensor, noise: Tensor) -> Tensor:
    """Return the mean squared error of the velocity, a scalar.

    Args:
        condition: ``[N, P, D]``; target: bits ``[N, P, C]``; times: ``[N]``; noise: standard normal ``[N, P, C]``.
    """
    t = times[:, None, None]
    noisy = (1 - t) * noise + t * target
    predicted = velocity(head(noisy, times, condition).float(), noisy, t)
    return F.mse_loss(predicted, velocity(target, noisy, t))
