"""Training of a text-to-image generator, and sampling from it (paper section 4.2)."""

from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bitdance_edge.model import (
    HeadConfig,
    ModelError,
    QwenConfig,
    SamplingDefaults,
    TextToImage,
    TextToImageConfig,
    Tokenizer,
)
from bitdance_edge.model.losses import drop_classes, flip_bits
from bitdance_edge.model.prompt import PromptTokenizer
from bitdance_edge.model.tokenizer import image_from_bytes, image_to_bytes
from bitdance_edge.training.data import augment
from bitdance_edge.training.errors import TrainingError
from bitdance_edge.training.generator import guidance_schedule
from bitdance_edge.training.image_set import ImageSet
from bitdance_edge.training.recipes import FinetuneRecipe, TextRecipe
from bitdance_edge.training.shape_reader import ShapeReader, reading_scores
from bitdance_edge.training.shapes import all_scenes
from bitdance_edge.training.trainer import Objective
from bitdance_edge.training.vocabulary import word_tokenizer

SAMPLE_BATCH = 64
SCORE_CAPTIONS = 64
SCORE_SEED = 0
ROTARY_BASE = 10_000.0
NORM_EPS = 1e-6


def text_config(recipe: TextRecipe, tokenizer: Tokenizer, vocabulary: int, example: str) -> TextToImageConfig:
    """Return the model configuration of a recipe, with ``vocabulary`` words and an example prompt.

    Raises:
        TrainingError: the sizes do not fit together.
    """
    try:
        return TextToImageConfig(
            backbone=QwenConfig(
                vocabulary=vocabulary,
                width=recipe.width,
                layers=recipe.layers,
                heads=recipe.heads,
                kv_heads=recipe.kv_heads,
                head_dim=recipe.head_dim,
                mlp_width=recipe.mlp_width,
                rotary_base=ROTARY_BASE,
                norm_eps=NORM_EPS,
            ),
            head=HeadConfig(
                bits=tokenizer.config.bits,
                condition_width=recipe.width,
                width=recipe.head_width,
                blocks=recipe.head_blocks,
                adaln_groups=recipe.head_adaln_groups,
                tokens_per_step=recipe.tokens_per_step,
                head_dim=128,
                swiglu=True,
                bounded=True,
            ),
            tokenizer=tokenizer.config,
            sizes=((recipe.size, recipe.size),),
            max_prompt=recipe.max_prompt,
            example=example,
            time_shift=1.0,
            time_schedule="logit_normal",
            time_mean=recipe.time_mean,
            time_std=recipe.time_std,
            targets_per_token=recipe.targets_per_token,
            sampling=SamplingDefaults(
                steps=recipe.sampling_steps, guidance=recipe.guidance, guidance_schedule=guidance_schedule(recipe)
            ),
        )
    except ModelError as error:
        raise TrainingError(f"the recipe's sizes do not fit together: {error}. Change them with --set") from None


def text_loss(
    model: TextToImage, recipe: TextRecipe | FinetuneRecipe, images: Tensor, ids: Tensor, padding: Tensor
) -> Tensor:
    """Return the loss of uint8 images ``[B, H, W, 3]`` with prompts int64 ``[B, T]``, padded on the left."""
    with torch.no_grad():
        tokens = model.to_sequence(model.tokenizer.encode(augment(image_from_bytes(images), recipe))).float()
    side = recipe.size // model.config.tokenizer.downsampling
    patches = model.config.targets_per_token * tokens.shape[0] * side**2 // model.config.tokens_per_step
    times = torch.randn(patches, device=tokens.device)
    noise = torch.randn(patches, model.config.tokens_per_step, model.config.bits, device=tokens.device)
    inputs = flip_bits(tokens, recipe.flip_rate)
    return model.loss(ids, padding, inputs, tokens, (side, side), times, noise)


class TextObjective(Objective):
    """Velocity error for drawn shapes; labels are indices of ``captions``. The score reads pictures of unseen ones."""

    score_name = "shapes read as asked"
    ids: Tensor
    padding: Tensor

    def __init__(self, recipe: TextRecipe, tokenizer: Tokenizer, captions: Sequence[str]) -> None:
        super().__init__()
        self.recipe = recipe
        side = recipe.size // tokenizer.config.downsampling
        self.words = word_tokenizer(captions, recipe.tokens_per_step, [side])
        self.model = TextToImage(text_config(recipe, tokenizer, self.words.get_vocab_size(), max(captions, key=len)))
        self.model.initialize()
        self.model.tokenizer.load_state_dict(tokenizer.state_dict())
        self.model.tokenizer.requires_grad_(False)
        self.prompts = PromptTokenizer(Path("tokenizer.json"), self.words, self.model.config)
        rows = [self.prompts.conditional(caption, recipe.size, recipe.size) for caption in captions]
        rows.append(self.prompts.unconditional(recipe.size, recipe.size))  # the row of "no prompt"
        longest = max(map(len, rows))
        padded = [[0] * (longest - len(row)) + row for row in rows]
        self.register_buffer("ids", torch.tensor(padded), persistent=False)
        self.register_buffer("padding", torch.tensor([longest - len(row) for row in rows]), persistent=False)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        rows = drop_classes(labels, self.recipe.prompt_dropout, len(self.ids) - 1)
        return text_loss(self.model, self.recipe, images, self.ids[rows], self.padding[rows])

    @torch.no_grad()
    def score(self, held_out: ImageSet) -> float:
        """Return the share of held-out things with color and shape read as requested, always with the same noise."""
        rows = np.random.default_rng(SCORE_SEED).permutation(len(held_out))[:SCORE_CAPTIONS]
        scenes = [all_scenes()[label] for label in held_out.labels[torch.from_numpy(rows)].tolist()]
        captions = [scene.caption for scene in scenes]
        pictures = draw_captions(self.model, self.prompts, captions, self.model.config.sampling, (SCORE_SEED,))
        return float(reading_scores(ShapeReader.fitted(self.recipe.size), pictures, scenes)["both"])


def draw_captions(
    model: TextToImage,
    prompts: PromptTokenizer,
    captions: Sequence[str],
    sampling: SamplingDefaults,
    seed: tuple[int, ...],
) -> NDArray[np.uint8]:
    """Generate pictures uint8 ``[N, H, W, 3]`` of the captions in the model's first size, by the plain sampler."""
    height, width = model.config.sizes[0]
    pixels = model.config.tokenizer.downsampling
    device = model.axis.device
    unconditional = torch.tensor(prompts.unconditional(height, width), device=device)
    rows = [torch.tensor(prompts.conditional(caption, height, width), device=device) for caption in captions]
    pictures = np.empty((len(captions), height, width, 3), np.uint8)
    for number, batch in enumerate(_of_equal_length(rows)):
        ids = torch.stack([rows[row] for row in batch])
        guided = [ids, unconditional.expand(len(batch), -1)] if sampling.guidance > 1 else [ids]
        patches = model.sample_patches(
            guided,
            (height // pixels, width // pixels),
            steps=sampling.steps,
            guidance=sampling.guidance,
            noise=_noise(model, len(batch), (*seed, number)),
        )
        latent = model.to_latent(torch.cat(list(patches), dim=1), height // pixels, width // pixels)
        with torch.no_grad():
            pictures[batch] = image_to_bytes(model.tokenizer.decode(latent)).cpu().numpy()
    return pictures


def _of_equal_length(rows: Sequence[Tensor]) -> Iterator[list[int]]:
    """Yield indices of ``rows`` in batches whose rows have equal length."""
    for length in sorted({len(row) for row in rows}):
        of_length = [index for index, row in enumerate(rows) if len(row) == length]
        for first in range(0, len(of_length), SAMPLE_BATCH):
            yield of_length[first : first + SAMPLE_BATCH]


def _noise(model: TextToImage, rows: int, seed: tuple[int, ...]) -> Iterator[Tensor]:
    """Draw standard normal noise ``[B, P, C]``, the same on every device."""
    generator = torch.Generator().manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))
    for _ in count():
        drawn = torch.randn(rows, model.config.tokens_per_step, model.config.bits, generator=generator)
        yield drawn.to(model.axis.device)
