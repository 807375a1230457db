"""What a run shows while it goes on: a table of its scores, and samples of the averaged weights at each."""

import csv
import io
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from bitdance_edge.model import SamplingDefaults
from bitdance_edge.runtime import save_png, written_whole
from bitdance_edge.training.captions import CaptionObjective
from bitdance_edge.training.errors import TrainingError
from bitdance_edge.training.evaluate import generate
from bitdance_edge.training.generator import FlowObjective
from bitdance_edge.training.image_set import ImageSet
from bitdance_edge.training.recipes import TrainingRecipe
from bitdance_edge.training.schedule import learning_rate
from bitdance_edge.training.sheets import contact_sheet
from bitdance_edge.training.text_generator import TextObjective, draw_captions
from bitdance_edge.training.tokenizer import TokenizerObjective, reconstruct
from bitdance_edge.training.trainer import Objective, Progress

CURVE = "curve.csv"
SAMPLES = "samples"
SHOWN = 8  # samples of each score
MOST_STEPS = 20  # of the sampler
COLUMNS = ("step", "loss", "held_out", "learning_rate", "images_per_second")


class Watcher:
    """Writes ``curve.csv`` and ``samples/step-....png`` in the folder of a run; a resumed run goes on with them."""

    def __init__(self, objective: Objective, recipe: TrainingRecipe, held_out: ImageSet, folder: Path) -> None:
        self.objective, self.recipe, self.held_out, self.folder = objective, recipe, held_out, folder

    def __call__(self, progress: Progress, loss: float, speed: float) -> None:
        """Add a row and a sheet of samples."""
        assert progress.score is not None, "it is called after a score"
        rate = learning_rate(self.recipe, progress.step - 1)
        row = (progress.step, f"{loss:.6g}", f"{progress.score:.6g}", f"{rate:.4g}", f"{speed:.1f}")
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([COLUMNS, *self._rows_before(progress.step), row])
        with written_whole(self.folder / CURVE) as file:
            file.write(text.getvalue().encode())
        (self.folder / SAMPLES).mkdir(exist_ok=True)
        images = samples(self.objective, self.held_out)
        save_png(contact_sheet(images, SHOWN), self.folder / SAMPLES / f"step-{progress.step:07d}.png")

    def _rows_before(self, step: int) -> list[list[str]]:
        """The rows of earlier steps: a resumed run repeats those after its state."""
        file = self.folder / CURVE
        if not file.exists():
            return []
        with file.open(encoding="utf-8", newline="") as content:
            header, *rows = csv.reader(content)
        if tuple(header) != COLUMNS or not all(row and row[0].isdecimal() for row in rows):
            raise TrainingError(f"{file} is not the table of a run; remove it")
        return [row for row in rows if int(row[0]) < step]


def samples(objective: Objective, held_out: ImageSet) -> Tensor:
    """Return ``SHOWN`` samples, uint8 ``[N, H, W, 3]``; of a tokenizer held-out images, then their reconstructions."""
    number = torch.arange(SHOWN) * len(held_out) // SHOWN  # repeats some where there are few
    shown = held_out[number.numpy()]
    if isinstance(objective, TokenizerObjective):
        return torch.cat([shown.images, reconstruct(objective.tokenizer, shown.images)])
    if isinstance(objective, FlowObjective):
        return generate(objective.model, shown.labels, _quick(objective.model.config.published), 0)
    assert isinstance(objective, TextObjective | CaptionObjective)
    sampling = _quick(objective.model.config.published)
    return torch.from_numpy(draw_captions(objective.model, objective.prompts, shown.captions, sampling, (0,)))


def _quick(sampling: SamplingDefaults) -> SamplingDefaults:
    return replace(sampling, steps=min(sampling.steps, MOST_STEPS))
