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
from bitdance_edge.training.data import training_data
from bitdance_edge.training.errors import TrainingError
from bitdance_edge.training.evaluate import generate, generator_scores, tokenizer_scores
from bitdance_edge.training.generator import GeneratorObjective
from bitdance_edge.training.named_recipes import NamedRecipe
from bitdance_edge.training.recipes import TextRecipe, TokenizerRecipe
from bitdance_edge.training.text_evaluate import shape_tokenizer_scores, text_scores
from bitdance_edge.training.text_generator import TextObjective, draw_captions
from bitdance_edge.training.tokenizer import TokenizerObjective
from bitdance_edge.training.trainer import Objective, Trainer

WEIGHTS = "model.safetensors"
SCORES = "scores.json"
SHEET = "samples.png"
SHEET_COLUMNS = 8  # images of each class
SHEET_CAPTIONS = 40
MAX_SHEET_CLASSES = 20
FRAME_GRAY = 96
SOURCES = {"digits": "scikit-learn digits", "shapes": "drawn by training/shapes.py"}


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Where a run reads and writes, and on what it runs; what it computes is the recipe's."""

    out: Path
    data: Path | None = None  # a folder of images; None is the recipe's own data
    tokenizer: Path | None = None  # of a generator
    precision: str = "no"  # no (float32) or bf16
    dtype: torch.dtype = torch.float16  # of the written weights
    resume: bool = False


def train(recipe: NamedRecipe, options: RunOptions) -> dict[str, Any]:
    """Train, write the averaged weights to ``options.out`` and return what ``training.json`` says.

    Raises:
        TrainingError: unusable data, a folder that already holds a checkpoint, or what ``Trainer`` raises.
        KeyboardInterrupt: after the state has been saved; ``resume`` goes on from there.
    """
    if (options.out / WEIGHTS).exists():
        raise TrainingError(f"{options.out} already holds a finished {WEIGHTS}; give another --out or remove it")
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
        if isinstance(objective, GeneratorObjective):
            save_generator(objective.model, options.out, options.dtype)
        elif isinstance(objective, TextObjective):
            save_text_to_image(objective.model, options.out, objective.words.to_str(pretty=True), options.dtype)
        elif isinstance(objective, TokenizerObjective):
            save_tokenizer(objective.tokenizer, options.out, options.dtype)
        _write_json(options.out / "training.json", report)
        trainer.state_file.unlink(missing_ok=True)
    return report


def evaluate(
    recipe: NamedRecipe,
    options: RunOptions,
    *,
    images: int | None = None,
    seeds: tuple[int, ...] = (0, 1, 2),
    sampling_steps: int | None = None,
    guidance: float | None = None,
) -> dict[str, Any]:
    """Score the finished checkpoint in ``options.out`` and write ``scores.json``, for a generator also ``samples.png``.

    Args:
        images: generated images a seed; by default as many as there are training images, or of text to image as there
            are held-out captions.
        sampling_steps, guidance: by default those that the checkpoint is published with.
    """
    training, held_out = training_data(recipe, options.data)
    if isinstance(recipe, TokenizerRecipe):
        tokenizer = load_tokenizer(options.out / WEIGHTS)
        captioned = recipe.data == "shapes" and options.data is None
        scores = (
            shape_tokenizer_scores(tokenizer, held_out)
            if captioned
            else tokenizer_scores(tokenizer, recipe, training, held_out)
        )
    elif isinstance(recipe, TextRecipe):
        model = load_text_to_image(options.out)
        prompts = PromptTokenizer.open(options.out / "tokenizer.json", model.config)
        sampling = _changed(model.config.published, sampling_steps, guidance)
        scores = text_scores(model, prompts, held_out, captions=images or len(held_out), seeds=seeds, sampling=sampling)
        shown = held_out.labels[torch.linspace(0, len(held_out) - 1, SHEET_CAPTIONS).long()].tolist()
        captions = [held_out.class_names[label] for label in shown]
        pictures = draw_captions(model, prompts, captions, sampling, seeds[:1])
        contact_sheet(torch.from_numpy(pictures), SHEET_COLUMNS).save(options.out / SHEET)
    else:
        model = load_generator(options.out / WEIGHTS)
        sampling = _changed(model.config.published, sampling_steps, guidance)
        scores = generator_scores(
            model, recipe, training, held_out, images=images or len(training), seeds=seeds, sampling=sampling
        )
        classes = torch.arange(min(len(training.class_names), MAX_SHEET_CLASSES)).repeat_interleave(SHEET_COLUMNS)
        contact_sheet(generate(model, classes, sampling, seeds[0]), SHEET_COLUMNS).save(options.out / SHEET)
    _write_json(options.out / SCORES, scores)
    return scores


def _changed(sampling: SamplingDefaults, steps: int | None, guidance: float | None) -> SamplingDefaults:
    return replace(
        sampling, steps=steps or sampling.steps, guidance=sampling.guidance if guidance is None else guidance
    )


def contact_sheet(images: Tensor, columns: int) -> Image.Image:
    """uint8 images ``[N, H, W, 3]``, N a multiple of ``columns``, as one picture in rows, each in a gray frame."""
    framed = F.pad(images, (0, 0, 1, 1, 1, 1), value=FRAME_GRAY)
    rows = framed.unflatten(0, (-1, columns))  # [R, columns, H, W, 3]
    return Image.fromarray(rows.permute(0, 2, 1, 3, 4).flatten(2, 3).flatten(0, 1).contiguous().numpy())


def _objective(recipe: NamedRecipe, tokenizer: Path | None, class_names: tuple[str, ...]) -> Objective:
    if isinstance(recipe, TokenizerRecipe):
        return TokenizerObjective(recipe)
    if tokenizer is None:
        raise TrainingError(
            "a generator needs a trained tokenizer; give --tokenizer FOLDER, trained by the recipe "
            f"{recipe.data}-tokenizer"
        )
    if isinstance(recipe, TextRecipe):
        return TextObjective(recipe, load_tokenizer(tokenizer), class_names)
    return GeneratorObjective(recipe, load_tokenizer(tokenizer), class_names)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
