from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bitdance_edge.model.tokenizer import image_from_bytes
from bitdance_edge.training.data import augment, digits, image_folder
from bitdance_edge.training.errors import TrainingError
from bitdance_edge.training.image_set import batch_rows
from bitdance_edge.training.recipes import TokenizerRecipe


def write_image(path: Path, color: tuple[int, int, int], size: tuple[int, int] = (12, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)


def test_digits_are_gray_bytes_of_ten_classes() -> None:
    data = digits(32)
    assert data.images.shape == (1797, 32, 32, 3)
    assert data.images.dtype == torch.uint8
    assert torch.equal(data.images[..., 0], data.images[..., 2])
    assert data.class_names == tuple("0123456789")
    assert data.labels.bincount().tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_the_split_is_stratified_disjoint_and_the_same_each_time() -> None:
    data = digits(8)
    train, held_out = data.split()
    assert len(train) + len(held_out) == len(data)
    assert (held_out.labels.bincount() * 5 - data.labels.bincount()).abs().max() < 5
    again = digits(8).split()[1]
    assert torch.equal(held_out.images, again.images)


def test_a_folder_gives_a_class_each_sub_folder(tmp_path: Path) -> None:
    write_image(tmp_path / "cat" / "a.png", (255, 0, 0))
    write_image(tmp_path / "cat" / "b.jpg", (255, 0, 0), size=(8, 12))
    write_image(tmp_path / "dog" / "c.png", (0, 0, 255))
    (tmp_path / "dog" / "notes.txt").write_text("not an image", encoding="utf-8")
    data = image_folder(tmp_path, 8)
    assert data.class_names == ("cat", "dog")
    assert data.labels.tolist() == [0, 0, 1]
    assert data.images.shape == (3, 8, 8, 3)
    assert data.images[2, 4, 4].tolist() == [0, 0, 255]


def test_folder_errors_name_the_path_and_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"no folder at .*missing"):
        image_folder(tmp_path / "missing", 8)
    with pytest.raises(TrainingError, match=r"at least two sub-folders.*found none"):
        image_folder(tmp_path, 8)
    write_image(tmp_path / "cat" / "a.png", (1, 2, 3))
    with pytest.raises(TrainingError, match=r"at least two sub-folders.*found cat"):
        image_folder(tmp_path, 8)
    (tmp_path / "dog").mkdir()
    with pytest.raises(TrainingError, match="dog holds no image"):
        image_folder(tmp_path, 8)
    (tmp_path / "dog" / "b.png").write_bytes(b"not a picture")
    with pytest.raises(TrainingError, match=r"b\.png is not a readable PNG"):
        image_folder(tmp_path, 8)
    write_image(tmp_path / "dog" / "b.png", (1, 2, 3))
    with pytest.raises(TrainingError, match="class 'cat' has 1 image"):
        image_folder(tmp_path, 8).split()


def test_batches_cover_every_image_once_an_epoch() -> None:
    rows = np.concatenate([batch_rows(10, 4, step, seed=3) for step in range(5)])
    assert sorted(rows[:10]) == sorted(rows[10:]) == list(range(10))
    assert rows[:10].tolist() != rows[10:].tolist()
    assert batch_rows(10, 4, 2, seed=3).tolist() == rows[8:12].tolist()
    assert len(batch_rows(3, 8, 0, seed=0)) == 8  # a batch may be larger than the set


def test_augmentation_keeps_shape_dtype_and_range(tokenizer_recipe: TokenizerRecipe) -> None:
    images = image_from_bytes(digits(16).images[:32])
    torch.manual_seed(0)
    varied = augment(images, replace(tokenizer_recipe, mirror=True))
    assert varied.shape == images.shape
    assert varied.dtype == torch.float32
    assert -1 <= varied.min() < varied.max() <= 1
    assert not torch.equal(varied, images)


def test_augmentation_can_be_off(tokenizer_recipe: TokenizerRecipe) -> None:
    images = image_from_bytes(digits(16).images[:4])
    assert augment(images, replace(tokenizer_recipe, rotation=0.0, scaling=0.0, shift=0.0)) is images


def test_mirroring_alone_swaps_left_and_right_or_nothing(tokenizer_recipe: TokenizerRecipe) -> None:
    images = image_from_bytes(digits(16).images[:32])
    torch.manual_seed(0)
    varied = augment(images, replace(tokenizer_recipe, rotation=0.0, scaling=0.0, shift=0.0, mirror=True))
    same = (varied - images).abs().flatten(1).amax(1) < 1e-3
    swapped = (varied - images.flip(3)).abs().flatten(1).amax(1) < 1e-3
    assert torch.all(same | swapped)
    assert 0 < swapped.sum() < 32
