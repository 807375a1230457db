"""What ships under checkpoints/ loads, is small, and says scores that hold."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bitdance_edge.model import load_generator, load_text_to_image, load_tokenizer
from bitdance_edge.model.prompt import PromptTokenizer
from bitdance_edge.training.classifier import train_classifier
from bitdance_edge.training.data import digits
from bitdance_edge.training.evaluate import generate
from bitdance_edge.training.named_recipes import RECIPES
from bitdance_edge.training.shape_reader import ShapeReader, reading_scores
from bitdance_edge.training.shapes import all_scenes, render
from bitdance_edge.training.text_generator import draw_captions
from bitdance_edge.training.tokenizer import mean_psnr, reconstruct

CHECKPOINTS = Path(__file__).parents[2] / "checkpoints"
AGREEMENT = {"digits-1x": 0.98, "digits-4x": 0.98, "digits-16x": 0.95}
MEBIBYTE = 2**20


def read_json(folder: str, name: str) -> dict[str, Any]:
    return json.loads((CHECKPOINTS / folder / name).read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", AGREEMENT)
def test_a_shipped_generator_is_small_and_on_the_shipped_tokenizer(name: str) -> None:
    model = load_generator(CHECKPOINTS / name)
    assert (CHECKPOINTS / name / "model.safetensors").stat().st_size < 8 * MEBIBYTE
    config = model.config
    assert (config.resolution, config.grid) == (32, 8)
    assert config.class_names == tuple("0123456789")
    assert config.steps == {"digits-1x": 64, "digits-4x": 16, "digits-16x": 4}[name]
    tokenizer = load_tokenizer(CHECKPOINTS / "digits-tokenizer").state_dict()
    assert all(torch.equal(value, tokenizer[key]) for key, value in model.tokenizer.state_dict().items())


@pytest.mark.parametrize(("name", "wanted"), AGREEMENT.items())
def test_the_written_scores_reach_what_was_asked(name: str, wanted: float) -> None:
    scores = read_json(name, "scores.json")
    assert scores["images_per_seed"] >= 1000
    assert scores["class_agreement"] >= wanted
    assert scores["classifier"]["held_out_accuracy"] >= 0.98
    nearest = scores["nearest_training_image"]
    copies = nearest["reconstructed_training_images"]["median"]
    assert nearest["generated"]["first_percentile"] > 2 * copies, "copies of training images would be this near"


def test_the_shipped_scores_are_of_the_published_settings() -> None:
    for name in (*AGREEMENT, "shapes-16x"):
        config = read_json(name, "config.json")
        sampling = config.get("bitdance", config)["published_sampling"]
        scored = read_json(name, "scores.json")["sampling"]
        assert (scored["steps"], scored["guidance"]) == (sampling["steps"], sampling["guidance"])
        written = read_json(name, "training.json")["recipe"]
        assert written == {**RECIPES[name].__dict__}, f"{name} was trained by another recipe than the named one"


def test_the_shipped_tokenizer_reconstructs_held_out_digits() -> None:
    held_out = digits(32).split()[1].images
    measured = mean_psnr(held_out, reconstruct(load_tokenizer(CHECKPOINTS / "digits-tokenizer"), held_out))
    assert measured >= 24
    assert measured == pytest.approx(read_json("digits-tokenizer", "scores.json")["psnr_db"], abs=0.05)


def test_a_hundred_digits_of_the_shipped_generator_read_as_asked() -> None:
    model = load_generator(CHECKPOINTS / "digits-4x")
    classes = torch.arange(10).repeat(10)
    images = generate(model, classes, model.config.published, seed=7)
    classifier = train_classifier(digits(32).split()[0], RECIPES["digits-4x"], seed=1, steps=250)
    assert (classifier.read(images)[1] == classes).float().mean() >= 0.9


def test_the_shipped_text_to_image_model_is_small_and_on_the_shipped_tokenizer() -> None:
    folder = CHECKPOINTS / "shapes-16x"
    assert sum(file.stat().st_size for file in folder.iterdir()) < 15 * MEBIBYTE
    model = load_text_to_image(folder)
    assert (model.config.sizes, model.config.tokens_per_step) == (((64, 64),), 16)
    tokenizer = load_tokenizer(CHECKPOINTS / "shapes-tokenizer").state_dict()
    assert all(torch.equal(value, tokenizer[key]) for key, value in model.tokenizer.state_dict().items())


def test_the_written_scores_of_text_to_image_reach_what_was_asked() -> None:
    scores = read_json("shapes-16x", "scores.json")
    assert scores["held_out_captions"] >= 500
    assert scores["color"] >= 0.9
    assert scores["shape"] >= 0.85
    assert scores["read_in_drawings"]["both"] >= 0.99, "the reader must read clean drawings"
    assert read_json("shapes-tokenizer", "scores.json")["read_in_reconstructions"]["shape"] >= 0.97


def test_what_the_shipped_tokenizer_rebuilds_reads_as_drawn() -> None:
    scenes = [scene for scene in all_scenes() if scene.held_out][::20]
    drawings = torch.from_numpy(render(scenes, 64, seed=11))
    rebuilt = reconstruct(load_tokenizer(CHECKPOINTS / "shapes-tokenizer"), drawings)
    assert reading_scores(ShapeReader.fitted(64), rebuilt.numpy(), scenes)["both"] >= 0.95


def test_pictures_of_held_out_captions_read_as_asked() -> None:
    folder = CHECKPOINTS / "shapes-16x"
    model = load_text_to_image(folder)
    prompts = PromptTokenizer.open(folder / "tokenizer.json", model.config)
    scenes = [scene for scene in all_scenes() if scene.held_out][::42]
    pictures = draw_captions(model, prompts, [scene.caption for scene in scenes], model.config.published, (3,))
    scores = reading_scores(ShapeReader.fitted(64), pictures, scenes)
    assert scores["color"] >= 0.8
    assert scores["shape"] >= 0.7
