"""A finished generator to go on training with: its classes matched to the data's, all weights or low-rank additions."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from bitdance_edge.model import BitDance, TextCheckpoint, TextToImage, load_generator
from bitdance_edge.model.adapter import checkpoint_digest, is_adapter
from bitdance_edge.model.lora import add_lora
from bitdance_edge.model.prompt import PromptTokenizer
from bitdance_edge.model.text_checkpoint import is_text_to_image
from bitdance_edge.training.captions import CaptionObjective
from bitdance_edge.training.errors import TrainingError
from bitdance_edge.training.generator import FlowObjective
from bitdance_edge.training.recipes import FinetuneRecipe


@dataclass(frozen=True, kw_only=True)
class Start:
    """The checkpoint that a run begins with."""

    path: Path
    variant: str | None = None  # of a .pt file
    tokenizer: str | None = None  # autoencoder weights that replace its own, as of a .pt file

    @property
    def captions(self) -> bool:
        """Whether it is a text-to-image model."""
        return is_text_to_image(self.path)

    def digest(self) -> str:
        own = checkpoint_digest(self.path)
        return own if self.tokenizer is None else f"{own}, tokenizer {checkpoint_digest(Path(self.tokenizer))}"


def open_start(start: Start) -> tuple[BitDance, None] | tuple[TextToImage, PromptTokenizer]:
    """Load a checkpoint in float32, and the tokenizer of its prompts.

    Raises:
        ModelError: it is not a whole generator.
        TrainingError: it is an adapter, or a text-to-image model for which another tokenizer is given.
    """
    if is_adapter(start.path):
        raise TrainingError(f"{start.path} is an adapter; fine-tune its base, or merge it by training all weights")
    if start.captions:
        if start.tokenizer is not None:
            raise TrainingError(f"{start.path} takes prompts and has its own tokenizer; omit --tokenizer")
        checkpoint = TextCheckpoint.open(start.path)
        return checkpoint.load(torch.float32), PromptTokenizer.open(checkpoint.prompt_file, checkpoint.config)
    return load_generator(start.path, variant=start.variant, tokenizer=start.tokenizer), None


def fitted(recipe: FinetuneRecipe, model: BitDance | TextToImage, path: Path) -> FinetuneRecipe:
    """Return the recipe with the image size of the model.

    Raises:
        TrainingError: another size is asked for, or the model has no square one.
    """
    sides = [height for height, width in model.config.sizes if height == width]
    size = recipe.size if recipe.size > 1 else next(iter(sides), 0)
    if size not in sides:
        shown = ", ".join(map(str, sides)) or "none"
        raise TrainingError(f"--size is {recipe.size}; the square sizes of {path} are {shown}")
    return replace(recipe, size=size)


def class_objective(model: BitDance, recipe: FinetuneRecipe, class_names: tuple[str, ...]) -> FlowObjective:
    """Prepare a class-conditional model for images of ``class_names``."""
    known = model.config.class_names or tuple(map(str, range(model.config.num_classes)))
    model.config = replace(
        model.config,
        targets_per_token=recipe.targets_per_token,
        class_names=class_names,
        num_classes=len(class_names),
    )
    model.backbone.cls_embedding = _embedding(model.backbone.cls_embedding, known, class_names)
    model.backbone.config = model.config
    _trained(model, recipe)
    if recipe.lora_rank and class_names != known:
        model.backbone.cls_embedding.requires_grad_(True)
    return FlowObjective(model, recipe)


def text_objective(model: TextToImage, prompts: PromptTokenizer, recipe: FinetuneRecipe) -> CaptionObjective:
    """Prepare a text-to-image model."""
    model.config = replace(model.config, targets_per_token=recipe.targets_per_token)
    _trained(model, recipe)
    return CaptionObjective(model, prompts, recipe)


def classes_of(model: BitDance, found: tuple[str, ...]) -> tuple[str, ...]:
    """Return the classes that a fine-tuned model has: its own where it knows all that were found, else those found."""
    known = model.config.class_names or tuple(map(str, range(model.config.num_classes)))
    return known if set(found) <= set(known) else found


def _trained(model: BitDance | TextToImage, recipe: FinetuneRecipe) -> None:
    if recipe.lora_rank:
        add_lora(model, recipe.lora_rank, recipe.lora_alpha)
    else:
        model.requires_grad_(True)


def _embedding(table: nn.Embedding, known: tuple[str, ...], names: tuple[str, ...]) -> nn.Embedding:
    """A table with a row for each name, then that of "no class"; new names begin as the latter."""
    if names == known:
        return table
    numbers = {name: number for number, name in enumerate(known)}
    rows = [numbers.get(name, len(known)) for name in names]
    return nn.Embedding.from_pretrained(table.weight.detach()[[*rows, len(known)]].clone(), freeze=False)
