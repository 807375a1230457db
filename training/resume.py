"""Reads the state of an interrupted run, without executing anything from it, and checks that it is of this run."""

import math
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import torch
from torch import Tensor
from torch.optim import Optimizer

from bitdance_edge.model.pickle_file import zip_complaint
from bitdance_edge.training.errors import TrainingError
from bitdance_edge.training.recipes import TrainingRecipe

PARTS: dict[str, type] = {
    "recipe": dict,
    "start": str,
    "images": int,
    "progress": dict,
    "weights": dict,
    "average": dict,
    "optimizer": dict,
}
MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # of AdamW, for each weight
PROGRESS = {"step", "cpu_seconds", "score"}
ENDINGS = "start again without --resume, in another --out"


def read_state(file: Path, device: torch.device) -> dict[str, Any]:
    """Read a state with the entries ``PARTS``.

    Raises:
        TrainingError: the file is missing or damaged, or is no such state.
    """
    if not file.is_file():
        raise TrainingError(f"nothing to resume: there is no {file}; omit --resume")
    place = torch.device("cpu") if device.type == "cpu" else device  # files know no cpu:0, which processes have
    try:
        if complaint := zip_complaint(file):
            raise ValueError(f"it {complaint[0]}")
        if (entry := _altered(file)) is not None:
            raise ValueError(f"its {entry} was altered")
        state = torch.load(file, map_location=place, weights_only=True)
    except OSError as error:
        raise TrainingError(f"{file} cannot be read: {error.strerror or error}; check its permissions") from None
    except Exception as error:  # what a damaged pickle makes of the reader is any error
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise TrainingError(f"{file} is damaged ({reason}); {ENDINGS}") from None
    if not isinstance(state, dict) or state.keys() != PARTS.keys():
        raise TrainingError(f"{file} is not the state of a run; {ENDINGS}")
    for name, kind in PARTS.items():
        if type(state[name]) is not kind:
            raise TrainingError(f"{file}: {name} is a {type(state[name]).__name__}, not a {kind.__name__}; {ENDINGS}")
    return state


def _altered(file: Path) -> str | None:
    """Return the first entry of an archive that has another checksum than it was written with."""
    with ZipFile(file) as archive:
        return archive.testzip()


def require_same_run(state: Mapping[str, Any], file: Path, recipe: TrainingRecipe, images: int, start: str) -> None:
    """Compare a state's recipe and data with this run's.

    Raises:
        TrainingError: they differ; one error lists all differences.
    """
    differing = [
        f"{field.name} was {state['recipe'].get(field.name)!r}, is {getattr(recipe, field.name)!r}"
        for field in fields(recipe)
        if state["recipe"].get(field.name) != getattr(recipe, field.name)
    ]
    if state["images"] != images:
        differing.append(f"training images were {state['images']}, are {images}")
    if state["start"] != start:
        differing.append(
            f"the weights before the first step were {state['start'] or 'random'}, are {start or 'random'}"
        )
    if differing:
        raise TrainingError(f"{file} is of another run: {'; '.join(differing)}. Give its settings, or another --out")
    progress = state["progress"]
    whole = progress.keys() == PROGRESS and type(progress["step"]) is int and 0 <= progress["step"] <= recipe.steps
    if not whole or not _is_number(progress["cpu_seconds"]) or not _is_number(progress["score"], optional=True):
        raise TrainingError(f"{file}: progress is {str(progress)[:80]}; {ENDINGS}")


def require_weights(state: Mapping[str, Any], file: Path, wanted: Mapping[str, Tensor]) -> None:
    """Compare a state's weights and their averages with the network's.

    Raises:
        TrainingError: one is missing, of another shape, or not finite.
    """
    for part in ("weights", "average"):
        found = state[part]
        if found.keys() != wanted.keys():
            names = sorted(map(str, found.keys() ^ wanted.keys()))[:4]
            raise TrainingError(f"{file}: {part} differ from the network's in {', '.join(names)}; {ENDINGS}")
        for name, weight in wanted.items():
            value = found[name]
            if not isinstance(value, Tensor) or value.shape != weight.shape or value.dtype != weight.dtype:
                raise TrainingError(f"{file}: {part} {name} is not {weight.dtype} {list(weight.shape)}; {ENDINGS}")
            if not torch.isfinite(value).all():
                raise TrainingError(f"{file}: {part} {name} has values that are not finite; {ENDINGS}")


def load_optimizer(optimizer: Optimizer, state: Mapping[str, Any], file: Path) -> None:
    """Load the moments of every weight; settings other than the learning rate must be this run's.

    Raises:
        TrainingError: the state is of another network or of other settings, or a moment is not finite.
    """
    before = _settings(optimizer)
    try:
        optimizer.load_state_dict(dict(state))
    except Exception as error:  # of a damaged state any
        raise TrainingError(f"{file}: optimizer is of another network ({error}); {ENDINGS}") from None
    if _settings(optimizer) != before:
        raise TrainingError(f"{file}: optimizer has other settings than this run; {ENDINGS}")
    if not optimizer.state:
        raise TrainingError(f"{file}: optimizer has no state of a weight; {ENDINGS}")
    for parameter, moments in optimizer.state.items():  # a weight without a gradient so far has none
        for name in MOMENTS:
            value = moments.get(name)
            whole = isinstance(value, Tensor) and bool(torch.isfinite(value).all())
            if not whole or value.shape not in (parameter.shape, torch.Size()):
                raise TrainingError(f"{file}: optimizer lacks a whole {name}; {ENDINGS}")


def _settings(optimizer: Optimizer) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in group.items() if name not in ("params", "lr")}
        for group in optimizer.param_groups
    ]


def _is_number(value: Any, *, optional: bool = False) -> bool:
    return (optional and value is None) or (type(value) in (int, float) and math.isfinite(value))
