import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bitdance_edge.training.errors import TrainingError
from bitdance_edge.training.generator import GeneratorObjective
from bitdance_edge.training.image_set import ImageSet
from bitdance_edge.training.recipes import GeneratorRecipe, TokenizerRecipe, TrainingRecipe
from bitdance_edge.training.tokenizer import TokenizerObjective
from bitdance_edge.training.trainer import STATE_FILE, Objective, Trainer

Sets = tuple[ImageSet, ImageSet]


def trained(
    objective: Objective, recipe: TrainingRecipe, sets: Sets, folder: Path, resume: bool = False
) -> dict[str, Tensor]:
    Trainer(objective, recipe, *sets, folder, resume=resume).run()
    return objective.state_dict()


def tokenizer_objective(recipe: TokenizerRecipe) -> TokenizerObjective:
    torch.manual_seed(recipe.seed)
    return TokenizerObjective(recipe)


def generator_objective(recipe: GeneratorRecipe, tokenizer: TokenizerRecipe, sets: Sets) -> GeneratorObjective:
    torch.manual_seed(recipe.seed)
    return GeneratorObjective(recipe, TokenizerObjective(tokenizer).tokenizer, sets[0].class_names)


def interrupt_after(objective: Objective, steps: int) -> None:
    """Let Ctrl-C arrive in the middle of the given step."""
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1
        if calls == steps:
            signal.raise_signal(signal.SIGINT)

    objective.register_forward_hook(count)


def test_a_few_steps_improve_the_held_out_psnr(
    tokenizer_recipe: TokenizerRecipe, small_digits: Sets, tmp_path: Path
) -> None:
    objective = tokenizer_objective(tokenizer_recipe)
    before = objective.score(small_digits[1])
    trained(objective, replace(tokenizer_recipe, steps=30), small_digits, tmp_path)
    assert objective.score(small_digits[1]) > before + 4


def test_a_few_steps_reduce_the_held_out_loss(
    generator_recipe: GeneratorRecipe, tokenizer_recipe: TokenizerRecipe, small_digits: Sets, tmp_path: Path
) -> None:
    objective = generator_objective(generator_recipe, tokenizer_recipe, small_digits)
    before = objective.score(small_digits[1])
    tokenizer = {key: value.clone() for key, value in objective.model.tokenizer.state_dict().items()}
    trained(objective, replace(generator_recipe, steps=40), small_digits, tmp_path)
    assert objective.score(small_digits[1]) < 0.8 * before
    assert all(torch.equal(value, tokenizer[key]) for key, value in objective.model.tokenizer.state_dict().items())


def test_interrupted_and_resumed_equals_uninterrupted(
    tokenizer_recipe: TokenizerRecipe, small_digits: Sets, tmp_path: Path
) -> None:
    whole = trained(tokenizer_objective(tokenizer_recipe), tokenizer_recipe, small_digits, tmp_path / "whole")
    first = tokenizer_objective(tokenizer_recipe)
    interrupt_after(first, 7)
    with pytest.raises(KeyboardInterrupt):
        trained(first, tokenizer_recipe, small_digits, tmp_path / "parts")
    torch.manual_seed(99)  # what the caller draws must not matter
    resumed = trained(TokenizerObjective(tokenizer_recipe), tokenizer_recipe, small_digits, tmp_path / "parts", True)
    assert all(torch.equal(value, resumed[key]) for key, value in whole.items())


def test_an_interrupted_generator_resumes_to_the_same_weights(
    generator_recipe: GeneratorRecipe, tokenizer_recipe: TokenizerRecipe, small_digits: Sets, tmp_path: Path
) -> None:
    def objective() -> GeneratorObjective:
        return generator_objective(generator_recipe, tokenizer_recipe, small_digits)

    whole = trained(objective(), generator_recipe, small_digits, tmp_path / "whole")
    first = objective()
    interrupt_after(first, 3)
    with pytest.raises(KeyboardInterrupt):
        trained(first, generator_recipe, small_digits, tmp_path / "parts")
    resumed = trained(objective(), generator_recipe, small_digits, tmp_path / "parts", resume=True)
    assert all(torch.equal(value, resumed[key]) for key, value in whole.items())


def test_training_leaves_the_callers_random_numbers_alone(
    tokenizer_recipe: TokenizerRecipe, small_digits: Sets, tmp_path: Path
) -> None:
    objective = tokenizer_objective(tokenizer_recipe)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    trained(objective, replace(tokenizer_recipe, steps=4), small_digits, tmp_path)
    assert torch.equal(torch.rand(1), expected)


def test_a_state_is_neither_overwritten_nor_resumed_with_other_settings(
    tokenizer_recipe: TokenizerRecipe, small_digits: Sets, tmp_path: Path
) -> None:
    objective = tokenizer_objective(tokenizer_recipe)
    with pytest.raises(TrainingError, match="nothing to resume"):
        Trainer(objective, tokenizer_recipe, *small_digits, tmp_path, resume=True)
    trained(objective, tokenizer_recipe, small_digits, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [STATE_FILE]
    with pytest.raises(TrainingError, match="--resume"):
        Trainer(objective, tokenizer_recipe, *small_digits, tmp_path)
    other = replace(tokenizer_recipe, learning_rate=0.5)
    with pytest.raises(TrainingError, match=r"learning_rate was 0\.002, is 0\.5"):
        Trainer(objective, other, *small_digits, tmp_path, resume=True)


def test_a_diverged_loss_stops_the_run(tokenizer_recipe: TokenizerRecipe, small_digits: Sets, tmp_path: Path) -> None:
    objective = tokenizer_objective(tokenizer_recipe)
    torch.nn.init.constant_(objective.tokenizer.decoder.conv_out.weight, float("nan"))
    with pytest.raises(TrainingError, match="loss is nan at step 1"):
        Trainer(objective, tokenizer_recipe, *small_digits, tmp_path).run()


def test_a_state_that_cannot_be_written_leaves_the_last_one(
    tokenizer_recipe: TokenizerRecipe, small_digits: Sets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no space\n at some line of PyTorch")

    objective = tokenizer_objective(tokenizer_recipe)
    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(TrainingError, match=r"resume\.pt \(no space\); .* then start again"):
        Trainer(objective, tokenizer_recipe, *small_digits, tmp_path).run()
    assert not list(tmp_path.iterdir())
    trainer = Trainer(objective, tokenizer_recipe, *small_digits, tmp_path)
    (tmp_path / STATE_FILE).touch()
    with pytest.raises(TrainingError, match="then continue with --resume"):
        trainer.run()


class MeanColor(Objective):
    """Squared distance of one weight from each image's mean: its gradient over a batch is the mean of its parts'."""

    score_name = "loss"

    def __init__(self) -> None:
        super().__init__()
        self.color = torch.nn.Parameter(torch.zeros(3))

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        return ((self.color - images.float().mean(dim=(1, 2)) / 255) ** 2).mean()

    def score(self, held_out: ImageSet) -> float:
        return self(held_out.images, held_out.labels).item()


def test_accumulated_parts_are_a_step_of_all_their_images(
    tokenizer_recipe: TokenizerRecipe, small_digits: Sets, tmp_path: Path
) -> None:
    recipe = replace(tokenizer_recipe, steps=6, learning_rate=0.05)
    whole = trained(MeanColor(), recipe, small_digits, tmp_path / "whole")["color"]
    parts = trained(MeanColor(), replace(recipe, accumulation=4), small_digits, tmp_path / "parts")["color"]
    assert whole.abs().min() > 0.05
    assert torch.allclose(whole, parts, rtol=1e-5)
    with pytest.raises(TrainingError, match="batch_size 8"):
        replace(recipe, accumulation=3)
