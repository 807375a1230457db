"""One run from data to checkpoint folder, and the scores of a finished one.

A finished folder holds ``config.json`` and ``model.safetensors`` (or an adapter), ``training.json`` (recipe, data and
cost), and what the run showed: ``curve.csv`` and ``samples/``.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from bitdance_edge.model import load_tokenizer, save_generator, save_text_to_image, save_tokenizer
from bitdance_edge.model.adapter import WEIGHTS as ADAPTER
from bitdance_edge.model.adapter import save_adapter
from bitdance_edge.runtime import written_whole
from bitdance_edge.training.captions import new_text_objective
from bitdance_edge.training.data import training_data
from bitdance_edge.training.errors import TrainingError
from bitdance_edge.training.finetune import Start, class_objective, classes_of, fitted, open_start, text_objective
from bitdance_edge.training.generator import GeneratorObjective
from bitdance_edge.training.image_set import ImageSet, TrainingImages
from bitdance_edge.training.named_recipes import NamedRecipe
from bitdance_edge.training.processes import others_needed
from bitdance_edge.training.recipes import FinetuneRecipe, GeneratorRecipe, TextRecipe, TokenizerRecipe
from bitdance_edge.training.scoring import WEIGHTS, Scored, Scoring, checkpoint_scores
from bitdance_edge.training.text_generator import TextObjective
from bitdance_edge.training.tokenizer import TokenizerObjective
from bitdance_edge.training.trainer import STATE_FILE, Objective, Trainer
from bitdance_edge.training.watching import Watcher

SCORES = "scores.json"
SOURCES = {"digits": "scikit-learn digits", "shapes": "drawn by training/shapes.py"}


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Where a run reads and writes, and its precision; the recipe has everything else."""

    out: Path
    data: Path | None = None  # images or shards of images. None: the recipe's own data
    stream: bool = False  # read images as they are needed, even if all fit into memory
    tokenizer: Path | None = None  # folder of a trained tokenizer, for a new generator; ``start`` has its own
    start: Start | None = None  # a checkpoint to fine-tune
    precision: str = "no"  # no (float32) or bf16
    dtype: torch.dtype = torch.float16  # of the written weights
    resume: bool = False


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A run before its first step. ``save`` writes the checkpoint."""

    recipe: NamedRecipe
    objective: Objective
    training: TrainingImages
    held_out: ImageSet
    save: Callable[[], None]


@others_needed()
def train(recipe: NamedRecipe, options: RunOptions) -> dict[str, Any]:
    """Train, write the averaged weights to ``options.out`` and return the content of ``training.json``.

    Raises:
        TrainingError: the data cannot be used, the folder already holds a checkpoint, or as ``Trainer`` raises.
        KeyboardInterrupt: after the state has been saved; ``resume`` continues from there.
    """
    for name in (WEIGHTS, ADAPTER):
        if (options.out / name).exists():
            raise TrainingError(f"{options.out} already holds a finished {name}; give another --out, or remove it")
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        run = _finetuning(recipe, options) if isinstance(recipe, FinetuneRecipe) else _new(recipe, options)
    start = "" if options.start is None else options.start.digest()
    trainer = Trainer(
        run.objective,
        run.recipe,
        run.training,
        run.held_out,
        options.out,
        precision=options.precision,
        resume=options.resume,
        start=start,
        watch=Watcher(run.objective, run.recipe, run.held_out, options.out),
    )
    scored = options.start is not None and not options.resume and trainer.accelerator.is_main_process
    before = run.objective.score(run.held_out) if scored else None
    progress = trainer.run()
    report = {
        "recipe": asdict(run.recipe),
        **({} if options.start is None else {"start": {"checkpoint": options.start.path.name, "digest": start}}),
        "data": {
            "source": SOURCES[recipe.data] if options.data is None else options.data.name,
            "training_images": len(run.training),
            "held_out_images": len(run.held_out),
        },
        "steps": progress.step,
        "cpu_minutes": round(progress.cpu_seconds / 60, 2),
        "processes": trainer.accelerator.num_processes,
        "device": trainer.accelerator.device.type,
        "precision": options.precision,
        **({} if before is None else {"held_out_before": {run.objective.score_name: before}}),
        "held_out": {run.objective.score_name: progress.score},
        "torch": torch.__version__,
    }
    if trainer.accelerator.is_main_process:
        run.save()
        _write_json(options.out / "training.json", report)
        (options.out / STATE_FILE).unlink(missing_ok=True)
    return report


def evaluate(recipe: NamedRecipe, options: RunOptions, scoring: Scoring) -> dict[str, Any]:
    """Score the finished checkpoint in ``options.out`` and write ``scores.json``, as ``checkpoint_scores`` does."""
    scores = checkpoint_scores(recipe, Scored(checkpoint=options.out, data=options.data), scoring)
    _write_json(options.out / SCORES, scores)
    return scores


def _new(recipe: TokenizerRecipe | GeneratorRecipe | TextRecipe, options: RunOptions) -> Prepared:
    """Make a network of the recipe's sizes.

    Raises:
        TrainingError: a checkpoint to fine-tune is given, or a generator has no tokenizer.
    """
    if options.start is not None:
        raise TrainingError("--init is for the recipe finetune; omit it, or the name of the recipe")
    captions = isinstance(recipe, TextRecipe) and options.data is not None
    training, held_out = training_data(recipe, options.data, captions=captions, stream=options.stream)
    common = {"recipe": recipe, "training": training, "held_out": held_out}
    out, dtype = options.out, options.dtype
    if isinstance(recipe, TokenizerRecipe):
        network = TokenizerObjective(recipe)
        return Prepared(**common, objective=network, save=lambda: save_tokenizer(network.tokenizer, out, dtype))
    if options.tokenizer is None:
        trained = f", trained with the recipe {recipe.data}-tokenizer" if recipe.data != "given" else ""
        raise TrainingError(f"a generator needs a tokenizer; give --tokenizer FOLDER{trained}")
    tokenizer = load_tokenizer(options.tokenizer)
    if isinstance(recipe, GeneratorRecipe):
        flow = GeneratorObjective(recipe, tokenizer, training.class_names)
        return Prepared(**common, objective=flow, save=lambda: save_generator(flow.model, out, dtype))
    if captions:
        text, words = new_text_objective(recipe, tokenizer, training)
    else:
        text = TextObjective(recipe, tokenizer, training.class_names)
        words = text.words
    vocabulary = words.to_str(pretty=True)
    return Prepared(**common, objective=text, save=lambda: save_text_to_image(text.model, out, vocabulary, dtype))


def _finetuning(recipe: FinetuneRecipe, options: RunOptions) -> Prepared:
    """Open the checkpoint that is fine-tuned.

    Raises:
        TrainingError: none is given, or as ``fitted`` and ``training_data`` raise.
    """
    start, out, dtype = options.start, options.out, options.dtype
    if start is None:
        raise TrainingError("finetune goes on with a checkpoint; give --init")
    opened = open_start(start)
    model = opened[0]
    recipe = fitted(recipe, model, start.path)
    training, held_out = training_data(recipe, options.data, captions=start.captions, stream=options.stream)
    adapter = {
        "folder": out,
        "base": start.path,
        "dtype": dtype,
        "variant": start.variant,
        "tokenizer": start.tokenizer,
    }
    if opened[1] is not None:
        text, prompts = text_objective(*opened, recipe), opened[1]
        vocabulary = prompts.tokenizer.to_str(pretty=True)
        objective: Objective = text
        whole, own = lambda: save_text_to_image(text.model, out, vocabulary, dtype), None
    else:
        names = classes_of(opened[0], held_out.class_names)
        own = None if names == classes_of(opened[0], ()) else names
        training, held_out = training.with_classes(names), held_out.with_classes(names)
        flow = class_objective(opened[0], recipe, names)
        objective, whole = flow, lambda: save_generator(flow.model, out, dtype)
    save = (lambda: save_adapter(model, class_names=own, **adapter)) if recipe.lora_rank else whole
    return Prepared(recipe=recipe, objective=objective, training=training, held_out=held_out, save=save)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    with written_whole(path) as file:
        file.write((json.dumps(content, indent=2) + "\n").encode())
