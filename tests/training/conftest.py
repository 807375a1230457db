from dataclasses import replace

import pytest
import torch

from bitdance_edge.training.data import digits
from bitdance_edge.training.image_set import ImageSet
from bitdance_edge.training.named_recipes import RECIPES
from bitdance_edge.training.recipes import GeneratorRecipe, TokenizerRecipe


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def small_digits() -> tuple[ImageSet, ImageSet]:
    """Digits of 16x16 pixels, split: enough to learn something of, quick to run."""
    return digits(16).split()


@pytest.fixture
def tokenizer_recipe() -> TokenizerRecipe:
    recipe = RECIPES["digits-tokenizer"]
    assert isinstance(recipe, TokenizerRecipe)
    return replace(recipe, size=16, steps=12, batch_size=8, warmup_steps=2, score_every=6, save_every=5, bits=4)


@pytest.fixture
def generator_recipe() -> GeneratorRecipe:
    recipe = RECIPES["digits-4x"]
    assert isinstance(recipe, GeneratorRecipe)
    return replace(
        recipe,
        size=16,
        steps=12,
        batch_size=8,
        warmup_steps=2,
        score_every=6,
        save_every=5,
        width=32,
        layers=1,
        heads=2,
        head_width=64,
        head_blocks=1,
    )
