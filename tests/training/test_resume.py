"""A state that is not this run's, or was damaged, is one error, whatever was done to it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mutations import damaged, rewrite

from bitdance_edge.training.errors import TrainingError
from bitdance_edge.training.image_set import ImageSet
from bitdance_edge.training.recipes import TokenizerRecipe
from bitdance_edge.training.resume import read_state
from bitdance_edge.training.tokenizer import TokenizerObjective
from bitdance_edge.training.trainer import STATE_FILE, Trainer

Sets = tuple[ImageSet, ImageSet]
NAN = float("nan")
WEIGHT = "tokenizer.encoder.conv_in.weight"


@pytest.fixture
def state(tokenizer_recipe: TokenizerRecipe, small_digits: Sets, tmp_path: Path) -> dict[str, Any]:
    """What a run leaves that was interrupted after its first step."""
    trainer = Trainer(TokenizerObjective(tokenizer_recipe), tokenizer_recipe, *small_digits, tmp_path)
    for parameters in trainer.optimizer.param_groups:
        for parameter in parameters["params"]:
            parameter.grad = torch.zeros_like(parameter)
    trainer.optimizer.step()
    trainer.progress.step = 1
    trainer._save()
    return torch.load(tmp_path / STATE_FILE, weights_only=True)


def resume(recipe: TokenizerRecipe, sets: Sets, folder: Path) -> Trainer:
    return Trainer(TokenizerObjective(recipe), recipe, *sets, folder, resume=True)


def test_a_whole_state_resumes(
    state: dict[str, Any], tokenizer_recipe: TokenizerRecipe, small_digits: Sets, tmp_path: Path
) -> None:
    assert resume(tokenizer_recipe, small_digits, tmp_path).progress.step == state["progress"]["step"]


def part(*path: str | int) -> Callable[[dict, Any], None]:
    def change(state: dict, value: Any) -> None:
        for key in path[:-1]:
            state = state[key]
        state[path[-1]] = value

    return change


VALUES: list[Any] = [None, -1, 10**9, NAN, "x", [], {}, True, torch.zeros(1), {"a": {"b": {}}}]
PLACES = [
    *((name,) for name in ("recipe", "images", "progress", "weights", "average", "optimizer")),
    *(("progress", name) for name in ("step", "cpu_seconds", "score")),
    *((name, WEIGHT) for name in ("weights", "average")),
    *(("optimizer", name) for name in ("state", "param_groups")),
    *(("optimizer", "param_groups", 0, name) for name in ("betas", "params", "eps", "weight_decay")),
    *(("optimizer", "state", 0, name) for name in ("exp_avg", "exp_avg_sq", "step")),
]


@pytest.mark.parametrize("place", PLACES, ids=lambda place: "-".join(map(str, place)))
def test_a_changed_state_is_refused_or_changes_nothing(
    place: tuple[str | int, ...],
    state: dict[str, Any],
    tokenizer_recipe: TokenizerRecipe,
    small_digits: Sets,
    tmp_path: Path,
) -> None:
    trainer = resume(tokenizer_recipe, small_digits, tmp_path)
    for value in VALUES:
        part(*place)(state, value)
        (tmp_path / STATE_FILE).unlink()
        torch.save(state, tmp_path / STATE_FILE)
        try:
            trainer._restore()
        except TrainingError as error:
            assert STATE_FILE in str(error)
            assert len(str(error)) < 2000
        else:
            harmless = (place[-1] in ("score", "cpu_seconds") and value in (None, -1, 10**9)) or place[-1] == "step"
            assert harmless, f"{place} = {value!r} was taken"
            assert trainer.progress.step <= tokenizer_recipe.steps


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is damaged"),
        (b"PK\x03\x04 cut", "is damaged"),
        (b"\x80\x02}q\x00.", "is damaged"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is damaged"),
    ],
)
def test_a_file_that_is_no_state_is_one_error(
    content: bytes, message: str, tokenizer_recipe: TokenizerRecipe, small_digits: Sets, tmp_path: Path
) -> None:
    (tmp_path / STATE_FILE).write_bytes(content)
    with pytest.raises(TrainingError, match=rf"resume\.pt {message} .*start again without --resume"):
        resume(tokenizer_recipe, small_digits, tmp_path)


def test_a_file_with_changed_bytes_is_refused_or_the_same_state(
    state: dict[str, Any], tokenizer_recipe: TokenizerRecipe, small_digits: Sets, tmp_path: Path
) -> None:
    trainer = resume(tokenizer_recipe, small_digits, tmp_path)
    file, taken = tmp_path / STATE_FILE, 0
    for content in damaged(file.read_bytes()):
        rewrite(file, content)
        try:
            found = read_state(file, torch.device("cpu"))
            trainer._restore()
        except TrainingError as error:
            assert STATE_FILE in str(error) and "\n" not in str(error) and len(str(error)) < 2000
            continue
        taken += 1
        for part_name in ("weights", "average"):
            assert all(torch.equal(value, state[part_name][name]) for name, value in found[part_name].items())
    assert taken < 20
