"""Labelled images in memory, and what all training images are to the training loop: their number, order and batches."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bitdance_edge.training.errors import TrainingError

HELD_OUT_SHARE = 0.2
SPLIT_SEED = 0
Rows = NDArray[np.int64]


class TrainingImages(Protocol):
    """Images by number, in memory or in files."""

    @property
    def class_names(self) -> tuple[str, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Rows) -> "ImageSet": ...

    def order(self, seed: int, epoch: int) -> Rows:
        """Return the numbers of all images in the order of an epoch, int64 ``[N]``."""
        ...

    def with_classes(self, class_names: tuple[str, ...]) -> "TrainingImages":
        """Return the same images with the numbers that their classes have among ``class_names``."""
        ...


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """uint8 images ``[N, H, W, 3]`` and their classes int64 ``[N]``, indices of ``class_names``.

    Where images have captions, these are the ``class_names``.
    """

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: Rows) -> "ImageSet":
        chosen = torch.from_numpy(rows)
        return ImageSet(images=self.images[chosen], labels=self.labels[chosen], class_names=self.class_names)

    @property
    def captions(self) -> list[str]:
        """The name of each image's class, or its caption."""
        return [self.class_names[label] for label in self.labels.tolist()]

    def order(self, seed: int, epoch: int) -> Rows:
        return permutation(len(self), seed, epoch)

    def with_classes(self, class_names: tuple[str, ...]) -> "ImageSet":
        """Return the same images with the numbers that their classes have among ``class_names``."""
        numbers = {name: number for number, name in enumerate(class_names)}
        labels = torch.tensor([numbers[name] for name in self.class_names])[self.labels]
        return ImageSet(images=self.images, labels=labels, class_names=class_names)

    def split(self) -> tuple["ImageSet", "ImageSet"]:
        """Split into training and held-out images as ``split_rows`` does."""
        train, held_out = split_rows(self.labels.numpy(), self.class_names)
        return self[train], self[held_out]


def split_rows(labels: Rows, class_names: tuple[str, ...]) -> tuple[Rows, Rows]:
    """Return the numbers of training and of held-out images, always the same.

    A fifth of every class that has images, rounded up, is held out; of all images where there are no classes.

    Raises:
        TrainingError: a class has a single image.
    """
    generator = np.random.default_rng(SPLIT_SEED)
    train: list[Rows] = []
    held_out: list[Rows] = []
    for index, name in enumerate(class_names or ("with captions",)):
        rows = np.flatnonzero(labels == index)
        if class_names and not len(rows):  # a number that no record of the shards has
            continue
        if len(rows) < 2:
            raise TrainingError(
                f"class {name!r} has {len(rows)} image; each class needs at least 2, of which one is held out"
            )
        rows = generator.permutation(rows)
        cut = math.ceil(HELD_OUT_SHARE * len(rows))
        held_out.append(rows[:cut])
        train.append(rows[cut:])
    return np.concatenate(train), np.concatenate(held_out)


def permutation(count: int, seed: int, epoch: int) -> Rows:
    """Return a permutation of ``count`` numbers that depends on seed and epoch only."""
    return np.random.default_rng((seed, epoch)).permutation(count)


def batch_rows(
    count: int, batch_size: int, step: int, seed: int, order: Callable[[int, int], Rows] | None = None
) -> Rows:
    """Return the indices of a step's batch, int64 ``[batch_size]``; every epoch is a new order of the images.

    A batch depends on these numbers only, so a resumed run sees the same batches as an uninterrupted one.

    Args:
        order: of an epoch, by seed and epoch; None: a permutation of all.
    """
    positions = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs = positions // count
    return np.concatenate(
        [
            (order(seed, int(epoch)) if order else permutation(count, seed, int(epoch)))[
                positions[epochs == epoch] % count
            ]
            for epoch in np.unique(epochs)
        ]
    )
