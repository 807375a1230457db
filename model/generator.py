"""The whole class-conditional model: tokenizer, backbone and head, with the plain way to sample and to train."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from bitdance_edge.model.backbone import ClassBackbone, GrowingCache
from bitdance_edge.model.class_config import GeneratorConfig
from bitdance_edge.model.head import DiffusionHead
from bitdance_edge.model.losses import flow_loss, training_times
from bitdance_edge.model.order import latent_to_sequence, sequence_to_latent
from bitdance_edge.model.sampler import patch_guidance, sample_patch
from bitdance_edge.model.tokenizer import Tokenizer, quantize


class BitDance(nn.Module):
    """B images, R rows of the backbone, P tokens a patch, C bits a token, D the width of the backbone."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config = config
        self.tokenizer = Tokenizer(config.tokenizer)
        self.backbone = ClassBackbone(config)
        self.head = DiffusionHead(config.head)

    @property
    def patch_side(self) -> int:
        """Side of a patch in tokens; 1 is raster order."""
        return int(self.config.tokens_per_step**0.5) if self.config.patch_order else 1

    def initialize(self) -> None:
        """Draw the weights of backbone and head before training; those of the tokenizer stay."""
        self.backbone.initialize()
        self.head.initialize()

    def to_sequence(self, latent: Tensor) -> Tensor:
        """Turn bits ``[B, C, h, w]`` into ``[B, h*w, C]``, in generation order."""
        return latent_to_sequence(latent, self.patch_side)

    def to_latent(self, sequence: Tensor) -> Tensor:
        """Turn bits ``[B, h*w, C]``, in generation order, into ``[B, C, h, w]``."""
        return sequence_to_latent(sequence, self.config.grid, self.config.grid, self.patch_side)

    def embed_prompt(self, classes: Tensor) -> Tensor:
        """Turn class ids int64 ``[R]`` into the prompt ``[R, class_tokens + P - 1, D]``."""
        return self.backbone.embed_classes(classes)

    def embed_tokens(self, tokens: Tensor) -> Tensor:
        """Turn bits ``[R, P, C]`` into ``[R, P, D]``, without position: the backbone rotates queries and keys by it."""
        return self.backbone.embed_tokens(tokens)

    def position_term(self, patch_index: Tensor) -> Tensor:
        """Return what is added to the head's condition at one patch: int64 ``[1]`` to ``[P, D]``."""
        return self.backbone.position_term(patch_index)

    def loss(self, classes: Tensor, inputs: Tensor, targets: Tensor, time_draws: Tensor, noise: Tensor) -> Tensor:
        """Return the training loss of the generator, a scalar.

        Args:
            classes: int64 ``[B]``.
            inputs: bits ``[B, h*w, C]`` that the backbone sees, some of them flipped; targets: the true bits.
            time_draws: normal or uniform draws ``[M*B*S]``, for M noisy copies of each of S patches.
            noise: standard normal ``[M*B*S, P, C]``.
        """
        config = self.config
        patches, copies = (-1, config.tokens_per_step), (config.targets_per_token, 1, 1)
        condition = self.backbone(classes, inputs).unflatten(1, patches).flatten(0, 1).repeat(copies)
        target = targets.unflatten(1, patches).flatten(0, 1).repeat(copies)
        return flow_loss(self.head, condition, target, training_times(config, time_draws), noise)

    def sample(self, classes: Tensor, *, steps: int, guidance: float, schedule: str, noise: Iterator[Tensor]) -> Tensor:
        """Generate all bits ``[B, h*w, C]``, in generation order; arguments are those of ``sample_patches``."""
        patches = self.sample_patches(classes, steps=steps, guidance=guidance, schedule=schedule, noise=noise)
        return torch.cat(list(patches), dim=1)

    @torch.no_grad()
    def sample_patches(
        self, classes: Tensor, *, steps: int, guidance: float, schedule: str, noise: Iterator[Tensor]
    ) -> Iterator[Tensor]:
        """Generate patch after patch by the plain path.

        Args:
            classes: int64 ``[B]``.
            noise: standard normal draws ``[B, P, C]`` in the order of use. Under the linear schedule the first patch
                has guidance 1; conditional and unconditional rows then have their own noise, ``[2B, P, C]``.

        Yields:
            bits ``[B, P, C]`` of each patch.
        """
        config = self.config
        rows = torch.cat([classes, torch.full_like(classes, config.num_classes)]) if guidance > 1 else classes
        cache = GrowingCache(config.tokens_per_step)
        embeddings = self.backbone.embed_classes(rows)
        for patch in range(config.steps):
            hidden = cache.step(self.backbone, embeddings)
            condition = hidden + self.backbone.position_term(torch.tensor([patch], device=classes.device))
            scale = patch_guidance(guidance, schedule, patch, config.steps) if guidance > 1 else 1.0

            def predict(x: Tensor, times: Tensor, condition: Tensor = condition) -> Tensor:
                return self.head(x, times, condition)

            tokens = quantize(sample_patch(predict, noise, steps, config.time_shift, scale))
            if tokens.shape[0] < rows.shape[0]:
                tokens = tokens.repeat(2, 1, 1)
            yield tokens[: classes.shape[0]]
            embeddings = self.backbone.embed_tokens(tokens)
