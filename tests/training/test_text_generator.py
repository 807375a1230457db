import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bitdance_edge.model import SamplingDefaults, load_text_to_image
from bitdance_edge.model.prompt import PromptTokenizer
from bitdance_edge.training import data, runs, scoring, text_evaluate
from bitdance_edge.training.data import in_memory, training_data
from bitdance_edge.training.errors import TrainingError
from bitdance_edge.training.image_set import ImageSet, TrainingImages
from bitdance_edge.training.named_recipes import RECIPES
from bitdance_edge.training.recipes import TextRecipe, TokenizerRecipe, TrainingRecipe
from bitdance_edge.training.runs import RunOptions, evaluate, train
from bitdance_edge.training.scoring import Scoring
from bitdance_edge.training.shapes import all_scenes
from bitdance_edge.training.text_evaluate import scenes_of
from bitdance_edge.training.text_generator import TextObjective, draw_captions
from bitdance_edge.training.tokenizer import TokenizerObjective

CAPTIONS = [scene.caption for scene in all_scenes()]


@pytest.fixture
def shapes_tokenizer() -> TokenizerRecipe:
    recipe = RECIPES["shapes-tokenizer"]
    assert isinstance(recipe, TokenizerRecipe)
    return replace(recipe, size=32, steps=2, batch_size=4, warmup_steps=1, bits=4)


@pytest.fixture
def shapes_recipe() -> TextRecipe:
    recipe = RECIPES["shapes-16x"]
    assert isinstance(recipe, TextRecipe)
    tiny = {"width": 32, "layers": 1, "heads": 2, "kv_heads": 1, "head_dim": 16, "mlp_width": 32, "head_width": 128}
    schedule = {"steps": 3, "batch_size": 4, "warmup_steps": 1, "score_every": 3, "save_every": 2, "sampling_steps": 2}
    return replace(recipe, size=32, head_blocks=1, **tiny, **schedule)


@pytest.fixture(autouse=True)
def few_drawings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "SHAPES_DRAWN", 64)

    def with_few_held_out(
        recipe: TrainingRecipe, folder: Path | None, *, captions: bool = False, stream: bool = False
    ) -> tuple[TrainingImages, ImageSet]:
        train_set, held_out = training_data(recipe, folder, captions=captions, stream=stream)
        return train_set, held_out[np.arange(0, len(held_out), 40)]

    for module in (runs, scoring):
        monkeypatch.setattr(module, "training_data", with_few_held_out)


@pytest.fixture
def objective(shapes_recipe: TextRecipe, shapes_tokenizer: TokenizerRecipe) -> TextObjective:
    torch.manual_seed(0)
    return TextObjective(shapes_recipe, TokenizerObjective(shapes_tokenizer).tokenizer, CAPTIONS)


def test_training_drawings_show_no_held_out_caption() -> None:
    train_set, held_out = training_data(RECIPES["shapes-16x"], None)
    assert not any(scene.held_out for scene in scenes_of(in_memory(train_set)))
    assert all(scene.held_out for scene in scenes_of(held_out))
    assert len(held_out) == len(set(held_out.labels.tolist())) >= 500


def test_prompts_are_padded_on_the_left_and_the_last_row_has_no_caption(objective: TextObjective) -> None:
    prompts = objective.prompts
    for row, wanted in ((40, prompts.conditional(CAPTIONS[40], 32, 32)), (-1, prompts.unconditional(32, 32))):
        assert objective.ids[row, objective.padding[row] :].tolist() == wanted
    assert objective.padding.min() == 0


def test_the_loss_depends_on_the_caption_and_trains_all_but_the_tokenizer(objective: TextObjective) -> None:
    for parameter in objective.model.head.parameters():  # the head starts as zero, which hides its condition
        torch.nn.init.normal_(parameter, std=0.1)
    images = torch.randint(0, 255, (4, 32, 32, 3), dtype=torch.uint8)

    def loss(label: int) -> torch.Tensor:
        torch.manual_seed(0)
        return objective(images, torch.full((4,), label))

    assert loss(0) == loss(0)
    assert loss(0) != loss(1)
    loss(0).backward()
    trained = {name for name, parameter in objective.named_parameters() if parameter.grad is not None}
    assert trained == {name for name, _ in objective.named_parameters() if not name.startswith("model.tokenizer.")}


def test_pictures_repeat_for_a_seed_whatever_the_lengths_of_the_captions(objective: TextObjective) -> None:
    sampling = SamplingDefaults(steps=2, guidance=2.0, guidance_schedule="constant")
    captions = [CAPTIONS[0], CAPTIONS[50], CAPTIONS[1]]
    first = draw_captions(objective.model, objective.prompts, captions, sampling, (1,))
    assert first.shape == (3, 32, 32, 3)
    assert np.array_equal(first, draw_captions(objective.model, objective.prompts, captions, sampling, (1,)))
    assert not np.array_equal(first, draw_captions(objective.model, objective.prompts, captions, sampling, (2,)))


def test_a_run_leaves_a_published_folder_that_is_scored(
    tmp_path: Path, shapes_recipe: TextRecipe, shapes_tokenizer: TokenizerRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer, folder = tmp_path / "tokenizer", tmp_path / "generator"
    train(shapes_tokenizer, RunOptions(out=tokenizer))
    tokenizer_scores = evaluate(shapes_tokenizer, RunOptions(out=tokenizer), Scoring())
    assert tokenizer_scores["read_in_drawings"]["captions"] == tokenizer_scores["held_out_images"] == 21
    report = train(shapes_recipe, RunOptions(out=folder, tokenizer=tokenizer))
    assert report["data"]["source"] == "drawn by training/shapes.py"
    monkeypatch.setattr(text_evaluate, "SINGLES_DRAWN", 1)
    scores = evaluate(shapes_recipe, RunOptions(out=folder), Scoring(images=6, seeds=(4, 5)))
    assert scores == json.loads((folder / "scores.json").read_text(encoding="utf-8"))
    assert (scores["held_out_captions"], [run["things"] for run in scores["per_seed"]]) == (6, [12, 12])
    model = load_text_to_image(folder)
    prompts = PromptTokenizer.open(folder / "tokenizer.json", model.config)
    assert len(prompts.encode(CAPTIONS[-1])) == len(CAPTIONS[-1].split())
    assert (folder / "samples.png").is_file()
    with pytest.raises(TrainingError, match=r"--images is 5000"):
        evaluate(shapes_recipe, RunOptions(out=folder), Scoring(images=5000))


def test_text_to_image_takes_no_images_without_captions(tmp_path: Path, shapes_recipe: TextRecipe) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(TrainingError, match=r"a\.png has no caption; put it into a\.txt beside the image"):
        train(shapes_recipe, RunOptions(out=tmp_path / "out", data=tmp_path))


def test_the_score_is_a_share_of_things(objective: TextObjective, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitdance_edge.training.text_generator.SCORE_CAPTIONS", 4)
    held_out = training_data(objective.recipe, None)[1]
    assert isinstance(held_out, ImageSet)
    assert 0 <= objective.score(held_out) <= 1
