"""Training of backbone and head over a finished tokenizer: teacher-forced flow matching (paper section 3.3)."""

import torch
from torch import Tensor

from bitdance_edge.model import BitDance, GeneratorConfig, ModelError, SamplingDefaults, Tokenizer
from bitdance_edge.model.losses import drop_classes, flip_bits
from bitdance_edge.model.tokenizer import image_from_bytes
from bitdance_edge.training.data import augment
from bitdance_edge.training.errors import TrainingError
from bitdance_edge.training.image_set import ImageSet
from bitdance_edge.training.recipes import FinetuneRecipe, FlowRecipe, GeneratorRecipe
from bitdance_edge.training.trainer import Objective

SCORE_BATCH = 128
SCORE_SEED = 0


def guidance_schedule(recipe: FlowRecipe) -> str:
    """Return the schedule of the checkpoint's sampling settings.

    The linear one, of the large models, gives the first patch no guidance: too little where that is much of the image.
    """
    return "linear" if recipe.linear_guidance else "constant"


def generator_config(recipe: GeneratorRecipe, tokenizer: Tokenizer, class_names: tuple[str, ...]) -> GeneratorConfig:
    """Return the model configuration of a recipe.

    Several tokens a step form squares (next-patch order).

    Raises:
        TrainingError: the sizes do not fit together.
    """
    try:
        return GeneratorConfig(
            width=recipe.width,
            layers=recipe.layers,
            heads=recipe.heads,
            class_tokens=recipe.class_tokens,
            num_classes=len(class_names),
            resolution=recipe.size,
            tokens_per_step=recipe.tokens_per_step,
            patch_order=recipe.tokens_per_step > 1,
            head_width=recipe.head_width,
            head_blocks=recipe.head_blocks,
            head_adaln_groups=recipe.head_adaln_groups,
            tokenizer=tokenizer.config,
            time_shift=1.0,
            time_schedule="logit_normal",
            time_mean=recipe.time_mean,
            time_std=recipe.time_std,
            targets_per_token=recipe.targets_per_token,
            class_names=class_names,
            sampling=SamplingDefaults(
                steps=recipe.sampling_steps, guidance=recipe.guidance, guidance_schedule=guidance_schedule(recipe)
            ),
        )
    except ModelError as error:
        raise TrainingError(f"the recipe's sizes do not fit together: {error}. Change them with --set") from None


class FlowObjective(Objective):
    """Velocity error of the head; the frozen tokenizer encodes the images batch by batch."""

    score_name = "loss"

    def __init__(self, model: BitDance, recipe: GeneratorRecipe | FinetuneRecipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.model = model
        self.dropout = recipe.class_dropout if isinstance(recipe, GeneratorRecipe) else recipe.condition_dropout
        self.model.tokenizer.requires_grad_(False)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        tokens = self._tokens(augment(image_from_bytes(images), self.recipe))
        classes = drop_classes(labels, self.dropout, self.model.config.num_classes)
        return self._velocity_error(classes, flip_bits(tokens, self.recipe.flip_rate), tokens)

    @torch.no_grad()
    def score(self, held_out: ImageSet) -> float:
        """Return the mean loss of held-out images, without flips and dropped classes, always with the same noise."""
        device = next(self.parameters()).device
        total = 0.0
        with torch.random.fork_rng():
            torch.manual_seed(SCORE_SEED)
            for images, labels in zip(
                held_out.images.split(SCORE_BATCH), held_out.labels.split(SCORE_BATCH), strict=True
            ):
                tokens = self._tokens(image_from_bytes(images.to(device)))
                total += len(labels) * self._velocity_error(labels.to(device), tokens, tokens).item()
        return total / len(held_out)

    @torch.no_grad()
    def _tokens(self, pixels: Tensor) -> Tensor:
        return self.model.to_sequence(self.model.tokenizer.encode(pixels))

    def _velocity_error(self, classes: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
        config = self.model.config
        rows = config.targets_per_token * targets.shape[0] * config.steps
        times = torch.randn(rows, device=targets.device)
        noise = torch.randn(rows, config.tokens_per_step, config.bits, device=targets.device)
        return self.model.loss(classes, inputs, targets, times, noise)


class GeneratorObjective(FlowObjective):
    """A new generator of the recipe's sizes, over a trained tokenizer."""

    def __init__(self, recipe: GeneratorRecipe, tokenizer: Tokenizer, class_names: tuple[str, ...]) -> None:
        model = BitDance(generator_config(recipe, tokenizer, class_names))
        model.initialize()
        model.tokenizer.load_state_dict(tokenizer.state_dict())
        super().__init__(model, recipe)
