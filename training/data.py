"""Class-labelled images in memory: their sources, their split, their batches by step number, their augmentation."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from bitdance_edge.runtime.errors import RequestError
from bitdance_edge.runtime.picture import MOST_BYTES, read_picture
from bitdance_edge.runtime.reading import open_regular
from bitdance_edge.training.errors import TrainingError
from bitdance_edge.training.recipes import TextRecipe, TrainingRecipe
from bitdance_edge.training.shapes import all_scenes, draw_scenes, render

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
HELD_OUT_SHARE = 0.2
SPLIT_SEED = 0
SHAPES_DRAWN = 32_768
SHAPES_SEED = 0


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """uint8 images ``[N, H, W, 3]`` and their classes int64 ``[N]``, indices of ``class_names``."""

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: NDArray[np.int64]) -> "ImageSet":
        chosen = torch.from_numpy(rows)
        return ImageSet(images=self.images[chosen], labels=self.labels[chosen], class_names=self.class_names)

    def split(self) -> tuple["ImageSet", "ImageSet"]:
        """Split into training and held-out images; a fifth of every class, rounded up, is held out, always the same.

        Raises:
            TrainingError: a class has fewer than two images.
        """
        generator = np.random.default_rng(SPLIT_SEED)
        train: list[NDArray[np.int64]] = []
        held_out: list[NDArray[np.int64]] = []
        for index, name in enumerate(self.class_names):
            rows = np.flatnonzero(self.labels.numpy() == index)
            if len(rows) < 2:
                raise TrainingError(
                    f"class {name!r} has {len(rows)} image; each class needs at least 2, of which one is held out"
                )
            rows = generator.permutation(rows)
            cut = math.ceil(HELD_OUT_SHARE * len(rows))
            held_out.append(rows[:cut])
            train.append(rows[cut:])
        return self[np.concatenate(train)], self[np.concatenate(held_out)]


def digits(size: int) -> ImageSet:
    """Load scikit-learn's 1,797 handwritten digits of 8x8 pixels, enlarged to ``size`` (bicubic), gray as RGB."""
    from sklearn.datasets import load_digits  # slow to import, and needed for this data only

    pixels, labels = load_digits(return_X_y=True)  # [N, 64] of 0..16, [N]
    gray = torch.from_numpy(pixels).float().view(-1, 1, 8, 8) * (255 / 16)
    gray = F.interpolate(gray, size=(size, size), mode="bicubic", align_corners=False).clamp(0, 255).round()
    images = gray.to(torch.uint8).permute(0, 2, 3, 1).expand(-1, -1, -1, 3).contiguous()
    return ImageSet(images=images, labels=torch.from_numpy(labels).long(), class_names=tuple(map(str, range(10))))


def shapes(size: int) -> tuple[ImageSet, ImageSet]:
    """Draw training images of colored shapes and one image of each held-out caption; classes are captions."""
    scenes = all_scenes()
    held_out = np.array([scene.held_out for scene in scenes])
    trained = np.flatnonzero(~held_out)
    drawn = trained[draw_scenes([scenes[row] for row in trained], SHAPES_DRAWN, SHAPES_SEED)]

    def pictures(rows: NDArray[np.int64], seed: int) -> ImageSet:
        return ImageSet(
            images=torch.from_numpy(render([scenes[row] for row in rows], size, seed)),
            labels=torch.from_numpy(rows),
            class_names=tuple(scene.caption for scene in scenes),
        )

    return pictures(drawn, SHAPES_SEED), pictures(np.flatnonzero(held_out), SHAPES_SEED + 1)


def training_data(recipe: TrainingRecipe, folder: Path | None) -> tuple[ImageSet, ImageSet]:
    """Return training and held-out images: those of ``folder``, or the recipe's own where it is None.

    Raises:
        TrainingError: a folder is given for text to image, or as ``image_folder`` and ``ImageSet.split`` raise.
    """
    if folder is not None and isinstance(recipe, TextRecipe):
        raise TrainingError("--data is a folder of classes, but text to image needs captions; omit --data")
    if folder is None and recipe.data == "shapes":
        return shapes(recipe.size)
    return (digits(recipe.size) if folder is None else image_folder(folder, recipe.size)).split()


def image_folder(folder: Path, size: int) -> ImageSet:
    """Load a folder with one sub-folder for each class; images are cropped to the central square, resized to ``size``.

    Raises:
        TrainingError: the folder is missing, has fewer than two classes, a class without images, or a damaged image.
    """
    if not folder.is_dir():
        raise TrainingError(f"no folder at {folder}; give a folder with one sub-folder of images for each class")
    classes = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if len(classes) < 2:
        found = ", ".join(path.name for path in classes) or "none"
        raise TrainingError(f"{folder} needs at least two sub-folders, one for each class; found {found}")
    files: list[tuple[Path, int]] = []
    for index, path in enumerate(classes):
        found = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
        if not found:
            raise TrainingError(f"{path} holds no image ({', '.join(SUFFIXES)}); add some or remove the folder")
        files += [(file, index) for file in found]
    # disable=None: no progress line where standard error is not a terminal
    images = [_read_square(file, size) for file, _ in tqdm(files, desc="reading", leave=False, disable=None)]
    return ImageSet(
        images=torch.from_numpy(np.stack(images)),
        labels=torch.tensor([index for _, index in files]),
        class_names=tuple(path.name for path in classes),
    )


def _read_square(file: Path, size: int) -> NDArray[np.uint8]:
    try:
        with open_regular(file, "image", MOST_BYTES) as content:
            image = read_picture(content, str(file))
    except RequestError as error:
        raise TrainingError(f"{error}; repair or remove it") from None
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(image)


def batch_rows(count: int, batch_size: int, step: int, seed: int) -> NDArray[np.int64]:
    """Return the indices of a step's batch, int64 ``[batch_size]``; every epoch is a new permutation of the images.

    A batch depends on these numbers only, so a resumed run sees the same batches as an uninterrupted one.
    """
    positions = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs = positions // count
    return np.concatenate(
        [
            np.random.default_rng((seed, epoch)).permutation(count)[positions[epochs == epoch] % count]
            for epoch in np.unique(epochs)
        ]
    )


def augment(images: Tensor, recipe: TrainingRecipe) -> Tensor:
    """Rotate, scale, shift and mirror each image at random within the recipe's limits; borders are repeated outwards.

    Args:
        images: float ``[B, 3, H, W]`` in [-1, 1], square. Random numbers come from torch's global generator.

    Returns:
        The same shape and dtype, within [-1, 1].
    """
    if not (recipe.rotation or recipe.scaling or recipe.shift or recipe.mirror):
        return images
    count = images.shape[0]
    angle, scale, right, down = (torch.rand(4, count, device=images.device) * 2 - 1).unbind(0)
    angle = angle * math.radians(recipe.rotation)
    scale = 1 + scale * recipe.scaling
    pixel = 2 / images.shape[-1]  # grid coordinates run from -1 to 1
    cos, sin = angle.cos() * scale, angle.sin() * scale
    flip = torch.ones_like(cos)
    if recipe.mirror:
        flip = torch.where(torch.rand_like(cos) < 0.5, -1.0, 1.0)
    rows = torch.stack(
        [
            torch.stack([flip * cos, -flip * sin, right * recipe.shift * pixel], dim=1),
            torch.stack([sin, cos, down * recipe.shift * pixel], dim=1),
        ],
        dim=1,
    )  # [B, 2, 3]
    grid = F.affine_grid(rows, list(images.shape), align_corners=False)
    varied = F.grid_sample(images, grid, mode="bicubic", padding_mode="border", align_corners=False)
    return varied.clamp(-1, 1)  # bicubic overshoots at edges
