import pytest
import torch

from bitdance_edge.model import SamplingDefaults
from bitdance_edge.training.errors import TrainingError
from bitdance_edge.training.evaluate import generate, generator_scores, nearest_distances
from bitdance_edge.training.generator import GeneratorObjective
from bitdance_edge.training.image_set import ImageSet
from bitdance_edge.training.recipes import GeneratorRecipe, TokenizerRecipe
from bitdance_edge.training.sheets import contact_sheet
from bitdance_edge.training.tokenizer import TokenizerObjective, mean_psnr

Sets = tuple[ImageSet, ImageSet]


@pytest.fixture
def objective(
    generator_recipe: GeneratorRecipe, tokenizer_recipe: TokenizerRecipe, small_digits: Sets
) -> GeneratorObjective:
    torch.manual_seed(0)
    return GeneratorObjective(
        generator_recipe, TokenizerObjective(tokenizer_recipe).tokenizer, small_digits[0].class_names
    )


def test_nearest_distance_is_zero_for_a_copy_and_in_gray_levels_else() -> None:
    train = torch.zeros(2, 4, 4, 3, dtype=torch.uint8)
    train[1] = 200
    images = torch.stack([train[1], torch.full((4, 4, 3), 10, dtype=torch.uint8)])
    assert nearest_distances(images, train).tolist() == pytest.approx([0, 10], abs=0.05)


def test_the_mean_psnr_stays_finite_with_a_perfect_image() -> None:
    images = torch.full((2, 4, 4, 3), 100, dtype=torch.uint8)
    others = images.clone()
    others[0] += 10
    assert mean_psnr(images, others) == pytest.approx((28.13 + 150) / 2, abs=0.01)


@pytest.mark.parametrize("schedule", ["constant", "linear"])
def test_the_same_seed_generates_the_same_images(objective: GeneratorObjective, schedule: str) -> None:
    sampling = SamplingDefaults(steps=2, guidance=2.0, guidance_schedule=schedule)
    classes = torch.arange(4)
    first = generate(objective.model, classes, sampling, seed=1)
    assert first.shape == (4, 16, 16, 3)
    assert torch.equal(first, generate(objective.model, classes, sampling, seed=1))
    assert not torch.equal(first, generate(objective.model, classes, sampling, seed=2))


def test_more_images_than_training_images_are_refused(
    objective: GeneratorObjective, generator_recipe: GeneratorRecipe, small_digits: Sets
) -> None:
    with pytest.raises(TrainingError, match="--images is 5000; allowed are 1 to 1433"):
        generator_scores(
            objective.model,
            generator_recipe,
            *small_digits,
            images=5000,
            seeds=(0,),
            sampling=objective.model.config.sampling,
        )


def test_the_contact_sheet_has_one_row_a_class() -> None:
    images = torch.zeros(6, 4, 4, 3, dtype=torch.uint8)
    images[3:] = 255
    sheet = contact_sheet(images, 3)
    assert sheet.size == (18, 12)
    assert sheet.getpixel((16, 4)) == (0, 0, 0)
    assert sheet.getpixel((1, 7)) == (255, 255, 255)
    assert sheet.getpixel((0, 0)) == (96, 96, 96)
