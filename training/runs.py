"""One run from data to checkpoint folder, and the scores of a finished one.

A finished folder holds ``config.json``, ``model.safetensors``, and ``training.json`` (recipe, data, cost).
"""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from bitdance_edge.model import (
    SamplingDefaults,
    load_generator,
    load_text_to_image,
    load_tokenizer,
    save_generator,
    save_text_to_image,
    save_tokenizer,
)
from bitdance_edge.model.prompt import PromptTokenizer
from bitdance_edge.runtime import save_png, written_whole
from bitdance_edge.training.data import ImageSet, training_data
from bitdance_edge.training.errors import TrainingError
from bitdance_edge.training.evaluate import generate, generator_scores, tokenizer_scores
from bitdance_edge.training.generator import GeneratorObjective
from bitdance_edge.training.named_recipes import NamedRecipe
from bitdance_edge.training.recipes import GeneratorRecipe, TextRecipe, TokenizerRecipe
from bitdance_edge.training.text_evaluate import shape_tokenizer_scores, text_scores
from bitdance_edge.training.text_generator import TextObjective, draw_captions
from bitdance_edge.training.tokenizer import TokenizerObjective
from bitdance_edge.training.trainer import Objective, Trainer

WEIGHTS = "model.safetensors"
SCORES = "scores.json"
SHEET = "samples.png"
SHEET_COLUMNS = 8  # for a class-conditional generator, images of one class
SHEET_CAPTIONS = 40
MAX_SHEET_CLASSES = 20
FRAME_GRAY = 96
SOURCES = {"digits": "scikit-learn digits", "shapes": "drawn by training/shapes.py"}


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Where a run reads and writes, and its precision; the recipe has everything else."""

    out: Path
    data: Path | None = None  # a folder of images. None: the recipe's own data
    tokenizer: Path | None = None  # folder of a trained tokenizer, for a generator
    precision: str = "no"  # no (float32) or bf16
    dtype: torch.dtype = torch.float16  # of the written weights
    resume: bool = False


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


def train(recipe: NamedRecipe, options: RunOptions) -> dict[str, Any]:
    """Train, write the averaged weights to ``options.out`` and return the content of ``training.json``.

    Raises:
        TrainingError: the data cannot be used, the folder already holds a checkpoint, or as ``Trainer`` raises.
        KeyboardInterrupt: after the state has been saved; ``resume`` continues from there.
    """
    if (options.out / WEIGHTS).exists():
        raise TrainingError(f"{options.out} already holds a finished {WEIGHTS}; give another --out, or remove it")
    training, held_out = training_data(recipe, options.data)
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        objective = _objective(recipe, options.tokenizer, training.class_names)
    trainer = Trainer(
        objective, recipe, training, held_out, options.out, precision=options.precision, resume=options.resume
    )
    progress = trainer.run()
    report = {
        "recipe": asdict(recipe),
        "data": {
            "source": SOURCES[recipe.data] if options.data is None else options.data.name,
            "training_images": len(training),
            "held_out_images": len(held_out),
        },
        "steps": progress.step,
        "cpu_minutes": round(progress.cpu_seconds / 60, 2),
        "processes": trainer.accelerator.num_processes,
        "device": trainer.accelerator.device.type,
        "precision": options.precision,
        "held_out": {objective.score_name: progress.score},
        "torch": torch.__version__,
    }
    if trainer.accelerator.is_main_process:
        _save(objective, options)
        _write_json(options.out / "training.json", report)
        trainer.state_file.unlink(missing_ok=True)
    return report


def _save(objective: Objective, options: RunOptions) -> None:
    if isinstance(objective, GeneratorObjective):
        save_generator(objective.model, options.out, options.dtype)
    elif isinstance(objective, TextObjective):
        save_text_to_image(objective.model, options.out, objective.words.to_str(pretty=True), options.dtype)
    elif isinstance(objective, TokenizerObjective):
        save_tokenizer(objective.tokenizer, options.out, options.dtype)


def evaluate(recipe: NamedRecipe, options: RunOptions, scoring: Scoring) -> dict[str, Any]:
    """Score the finished checkpoint in ``options.out``, write ``scores.json``, for a generator also ``samples.png``.

    Raises:
        TrainingError: the data cannot be used, or has too few images for ``scoring``.
        ModelError: there is no finished checkpoint.
    """
    training, held_out = training_data(recipe, options.data)
    if isinstance(recipe, TokenizerRecipe):
        scores = _score_tokenizer(recipe, options, training, held_out)
    else:
        scores, samples = (
            _score_text(options, scoring, held_out)
            if isinstance(recipe, TextRecipe)
            else _score_classes(recipe, options, scoring, training, held_out)
        )
        save_png(contact_sheet(samples, SHEET_COLUMNS), options.out / SHEET)
    _write_json(options.out / SCORES, scores)
    return scores


def _score_tokenizer(
    recipe: TokenizerRecipe, options: RunOptions, training: ImageSet, held_out: ImageSet
) -> dict[str, Any]:
    tokenizer = load_tokenizer(options.out / WEIGHTS)
    if recipe.data == "shapes" and options.data is None:
        return shape_tokenizer_scores(tokenizer, held_out)
    return tokenizer_scores(tokenizer, recipe, training, held_out)


def _score_text(options: RunOptions, scoring: Scoring, held_out: ImageSet) -> tuple[dict[str, Any], Tensor]:
    """Scores, and pictures of ``SHEET_CAPTIONS`` held-out captions."""
    model = load_text_to_image(options.out)
    prompts = PromptTokenizer.open(options.out / "tokenizer.json", model.config)
    sampling = scoring.sampling(model.config.published)
    captions = scoring.images or len(held_out)
    scores = text_scores(model, prompts, held_out, captions=captions, seeds=scoring.seeds, sampling=sampling)
    labels = held_out.labels[torch.linspace(0, len(held_out) - 1, SHEET_CAPTIONS).long()].tolist()
    shown = [held_out.class_names[label] for label in labels]
    return scores, torch.from_numpy(draw_captions(model, prompts, shown, sampling, scoring.seeds[:1]))


def _score_classes(
    recipe: GeneratorRecipe, options: RunOptions, scoring: Scoring, training: ImageSet, held_out: ImageSet
) -> tuple[dict[str, Any], Tensor]:
    """Scores, and ``SHEET_COLUMNS`` images of each class."""
    model = load_generator(options.out / WEIGHTS)
    sampling = scoring.sampling(model.config.published)
    images = scoring.images or len(training)
    scores = generator_scores(model, recipe, training, held_out, images=images, seeds=scoring.seeds, sampling=sampling)
    classes = torch.arange(min(len(training.class_names), MAX_SHEET_CLASSES)).repeat_interleave(SHEET_COLUMNS)
    return scores, generate(model, classes, sampling, scoring.seeds[0])


def contact_sheet(images: Tensor, columns: int) -> Image.Image:
    """Arrange uint8 images ``[N, H, W, 3]``, N a multiple of ``columns``, in rows of one picture, with gray frames."""
    framed = F.pad(images, (0, 0, 1, 1, 1, 1), value=FRAME_GRAY)
    rows = framed.unflatten(0, (-1, columns))  # [R, columns, H, W, 3]
    return Image.fromarray(rows.permute(0, 2, 1, 3, 4).flatten(2, 3).flatten(0, 1).contiguous().numpy())


def _objective(recipe: NamedRecipe, tokenizer: Path | None, class_names: tuple[str, ...]) -> Objective:
    if isinstance(recipe, TokenizerRecipe):
        return TokenizerObjective(recipe)
    if tokenizer is None:
        raise TrainingError(
            f"a generator needs a tokenizer; give --tokenizer FOLDER, trained with the recipe {recipe.data}-tokenizer"
        )
    if isinstance(recipe, TextRecipe):
        return TextObjective(recipe, load_tokenizer(tokenizer), class_names)
    return GeneratorObjective(recipe, load_tokenizer(tokenizer), class_names)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    with written_whole(path) as file:
        file.write((json.dumps(content, indent=2) + "\n").encode())
