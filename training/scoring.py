"""The scores of a finished checkpoint, and its samples in ``samples.png``."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bitdance_edge.model import SamplingDefaults, load_generator, load_tokenizer
from bitdance_edge.model.adapter import is_adapter
from bitdance_edge.model.prompt import PromptTokenizer
from bitdance_edge.model.text_checkpoint import TextCheckpoint, is_text_to_image
from bitdance_edge.runtime import save_png
from bitdance_edge.training.captions import CaptionObjective
from bitdance_edge.training.data import in_memory, training_data
from bitdance_edge.training.evaluate import generate, generator_scores, tokenizer_scores
from bitdance_edge.training.finetune import classes_of, fitted
from bitdance_edge.training.named_recipes import NamedRecipe
from bitdance_edge.training.recipes import FinetuneRecipe, GeneratorRecipe, TextRecipe, TokenizerRecipe
from bitdance_edge.training.sheets import contact_sheet
from bitdance_edge.training.text_evaluate import shape_tokenizer_scores, text_scores
from bitdance_edge.training.text_generator import draw_captions

WEIGHTS = "model.safetensors"
SHEET = "samples.png"
SHEET_COLUMNS = 8  # for a class-conditional generator, images of one class
SHEET_CAPTIONS = 40
MAX_SHEET_CLASSES = 20
MOST_SCORED = 50_000  # training images that scores are compared with


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """How a checkpoint is scored; a tokenizer has no such choices."""

    images: int | None = None  # generated per seed. None: the number of training images, or of held-out captions
    seeds: tuple[int, ...] = (0, 1, 2)
    sampling_steps: int | None = None  # None: those that the checkpoint was published with; guidance alike
    guidance: float | None = None

    def sampling(self, published: SamplingDefaults) -> SamplingDefaults:
        """Return the published settings with the changes asked for."""
        return replace(
            published,
            steps=self.sampling_steps or published.steps,
            guidance=published.guidance if self.guidance is None else self.guidance,
        )


@dataclass(frozen=True, kw_only=True)
class Scored:
    """What is scored: a checkpoint's folder, and the data of its recipe or of the user."""

    checkpoint: Path
    data: Path | None = None


def checkpoint_scores(recipe: NamedRecipe, scored: Scored, scoring: Scoring) -> dict[str, Any]:
    """Score a finished checkpoint, write ``samples.png`` for a generator, and return the scores.

    Raises:
        TrainingError: the data cannot be used, or has too few images for ``scoring``.
        ModelError: there is no finished checkpoint.
    """
    if isinstance(recipe, TokenizerRecipe):
        return _score_tokenizer(recipe, scored)
    captions = is_text_to_image(scored.checkpoint)
    if captions:
        scores, samples = _score_text(recipe, scored, scoring)
    else:
        scores, samples = _score_classes(recipe, scored, scoring)
    save_png(contact_sheet(samples, SHEET_COLUMNS), scored.checkpoint / SHEET)
    return scores


def _score_tokenizer(recipe: TokenizerRecipe, scored: Scored) -> dict[str, Any]:
    training, held_out = training_data(recipe, scored.data)
    tokenizer = load_tokenizer(scored.checkpoint / WEIGHTS)
    if recipe.data == "shapes" and scored.data is None:
        return shape_tokenizer_scores(tokenizer, held_out)
    return tokenizer_scores(tokenizer, recipe, in_memory(training, MOST_SCORED), held_out)


def _score_text(recipe: NamedRecipe, scored: Scored, scoring: Scoring) -> tuple[dict[str, Any], Tensor]:
    """Scores, and pictures of ``SHEET_CAPTIONS`` held-out captions."""
    checkpoint = TextCheckpoint.open(scored.checkpoint)
    model = checkpoint.load(torch.float32)
    recipe = fitted(recipe, model, scored.checkpoint) if isinstance(recipe, FinetuneRecipe) else recipe
    _, held_out = training_data(recipe, scored.data, captions=scored.data is not None)
    prompts = PromptTokenizer.open(checkpoint.prompt_file, model.config)
    sampling = scoring.sampling(model.config.published)
    if recipe.data == "shapes" and scored.data is None:
        captions = scoring.images or len(held_out)
        scores = text_scores(model, prompts, held_out, captions=captions, seeds=scoring.seeds, sampling=sampling)
    else:
        assert isinstance(recipe, TextRecipe | FinetuneRecipe)
        loss = CaptionObjective(model, prompts, recipe).score(held_out)
        scores = {"held_out_images": len(held_out), "loss": round(loss, 5)}
    shown = held_out[torch.linspace(0, len(held_out) - 1, SHEET_CAPTIONS).long().numpy()].captions
    return scores, torch.from_numpy(draw_captions(model, prompts, shown, sampling, scoring.seeds[:1]))


def _score_classes(recipe: NamedRecipe, scored: Scored, scoring: Scoring) -> tuple[dict[str, Any], Tensor]:
    """Scores, and ``SHEET_COLUMNS`` images of each class."""
    assert isinstance(recipe, GeneratorRecipe | FinetuneRecipe)
    model = load_generator(_weights(scored.checkpoint))
    recipe = fitted(recipe, model, scored.checkpoint) if isinstance(recipe, FinetuneRecipe) else recipe
    training, held_out = training_data(recipe, scored.data)
    if isinstance(recipe, FinetuneRecipe):
        names = classes_of(model, held_out.class_names)
        training, held_out = training.with_classes(names), held_out.with_classes(names)
    sampling = scoring.sampling(model.config.published)
    training = in_memory(training, MOST_SCORED)
    images = scoring.images or len(training)
    scores = generator_scores(model, recipe, training, held_out, images=images, seeds=scoring.seeds, sampling=sampling)
    found = held_out.labels.unique()[:MAX_SHEET_CLASSES]
    return scores, generate(model, found.repeat_interleave(SHEET_COLUMNS), sampling, scoring.seeds[0])


def _weights(folder: Path) -> Path:
    return folder if is_adapter(folder) else folder / WEIGHTS
