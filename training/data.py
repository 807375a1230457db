"""Training images: their sources, their split, their batches by step number, their augmentation."""

import math
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from bitdance_edge.training.errors import TrainingError
from bitdance_edge.training.image_set import SPLIT_SEED, ImageSet, TrainingImages, split_rows
from bitdance_edge.training.recipes import TrainingRecipe
from bitdance_edge.training.records import Records, class_folder, open_records
from bitdance_edge.training.shapes import all_scenes, draw_scenes, render
from bitdance_edge.training.streamed import StreamedImages

IN_MEMORY = 2**30  # bytes of decoded images; what takes more is read from its files as it is needed
MOST_HELD_OUT = 1024  # images, where the others are not in memory
READ_AT_ONCE = 256
SHAPES_DRAWN = 32_768
SHAPES_SEED = 0


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


def training_data(
    recipe: TrainingRecipe, path: Path | None, *, captions: bool = False, stream: bool = False
) -> tuple[TrainingImages, ImageSet]:
    """Return training and held-out images: those at ``path``, or the recipe's own where it is None.

    Args:
        path: what ``open_records`` opens.
        captions: whether its images must have captions; otherwise classes.
        stream: whether to read images as they are needed, even if all fit into ``IN_MEMORY``.

    Raises:
        TrainingError: there are no such data, or they do not suit the recipe.
    """
    if path is not None:
        return split_records(open_records(path, captions=captions), recipe.size, stream=stream)
    if recipe.data == "given":
        raise TrainingError("this recipe has no data of its own; give --data, a folder of images or of shards")
    return shapes(recipe.size) if recipe.data == "shapes" else digits(recipe.size).split()


def split_records(records: Records, size: int, *, stream: bool) -> tuple[TrainingImages, ImageSet]:
    """Return training and held-out images of records, in memory where they fit.

    Raises:
        TrainingError: a class has fewer than two images, or an image cannot be read.
    """
    train, held_out = split_rows(records.labels, records.class_names)
    stream = stream or len(records) * size * size * 3 > IN_MEMORY
    if stream and len(held_out) > MOST_HELD_OUT:
        shuffled = np.random.default_rng(SPLIT_SEED).permutation(held_out)
        train, held_out = np.concatenate([train, shuffled[MOST_HELD_OUT:]]), shuffled[:MOST_HELD_OUT]
    training = StreamedImages(records, train, size)
    return training if stream else in_memory(training), in_memory(StreamedImages(records, held_out, size))


def in_memory(images: TrainingImages, most: int | None = None) -> ImageSet:
    """Return all images, in their order, or ``most`` of them, drawn at random but always the same."""
    if isinstance(images, ImageSet) and (most is None or len(images) <= most):
        return images
    rows = np.arange(len(images))
    if most is not None and most < len(images):
        rows = np.random.default_rng(SPLIT_SEED).permutation(len(images))[:most]
    # disable=None: no progress line where standard error is not a terminal
    starts = tqdm(range(0, len(rows), READ_AT_ONCE), desc="reading", leave=False, disable=None)
    parts = [images[rows[start : start + READ_AT_ONCE]] for start in starts]
    if images.class_names:
        labels, names = torch.cat([part.labels for part in parts]), images.class_names
    else:
        labels, names = torch.arange(len(rows)), tuple(caption for part in parts for caption in part.captions)
    return ImageSet(images=torch.cat([part.images for part in parts]), labels=labels, class_names=names)


def image_folder(folder: Path, size: int) -> ImageSet:
    """Load a folder with one sub-folder for each class; images are cropped to the central square, resized to ``size``.

    Raises:
        TrainingError: the folder is missing, has fewer than two classes, a class without images, or a damaged image.
    """
    records = class_folder(folder)
    return in_memory(StreamedImages(records, np.arange(len(records)), size))


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
