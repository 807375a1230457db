"""Training images that stay in their files: an epoch's order by shards and windows, and batches decoded by threads.

The order depends on seed and epoch only, so that a run resumes in the middle of an epoch without reading what it has
seen. Where all images fit into one window, it is the order of images in memory.
"""

import io
import os
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bitdance_edge.runtime.errors import RequestError
from bitdance_edge.runtime.picture import read_picture
from bitdance_edge.training.errors import TrainingError
from bitdance_edge.training.image_set import ImageSet, Rows, permutation
from bitdance_edge.training.records import Records

READERS = min(16, os.cpu_count() or 1)


class StreamedImages:
    """The images ``rows`` of ``records``, cropped to the central square and resized to ``size``.

    A batch has the classes of the records, or its own captions as names.

    Raises:
        TrainingError: when a batch is read, of which a file cannot be read or is no image.
    """

    def __init__(self, records: Records, rows: Rows, size: int, class_names: tuple[str, ...] | None = None) -> None:
        self.records, self.rows, self.size = records, rows, size
        self.class_names = class_names or records.class_names
        numbers = {name: number for number, name in enumerate(self.class_names)}
        self._numbers = np.array([numbers[name] for name in records.class_names], np.int64)
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="reader")
        self.order = lru_cache(maxsize=2)(self._order)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: Rows) -> ImageSet:
        found = self.rows[rows].tolist()
        images = torch.stack(list(self._readers.map(self._square, found)))
        if self.class_names:
            labels, names = self._numbers[self.records.labels[found]], self.class_names
        else:
            labels, names = np.arange(len(found)), tuple(self.records.caption(row) for row in found)
        return ImageSet(images=images, labels=torch.from_numpy(labels), class_names=names)

    def with_classes(self, class_names: tuple[str, ...]) -> "StreamedImages":
        """Return the same images with the numbers that their classes have among ``class_names``."""
        return StreamedImages(self.records, self.rows, self.size, class_names)

    def _order(self, seed: int, epoch: int) -> Rows:
        """Shuffle the shards, then the images within each window of consecutive ones."""
        window = self.records.window or len(self)
        if len(self) <= window:
            return permutation(len(self), seed, epoch)
        generator = np.random.default_rng((seed, epoch))
        shards = self.records.shards[self.rows]
        turn = generator.permutation(int(shards.max()) + 1)
        order = np.argsort(turn[shards], kind="stable")
        for start in range(0, len(order), window):
            order[start : start + window] = generator.permutation(order[start : start + window])
        return order

    def _square(self, row: int) -> Tensor:
        try:
            image = read_picture(io.BytesIO(self.records.image(row)), self.records.name(row))
        except RequestError as error:
            raise TrainingError(f"{error}; repair or remove it") from None
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))
        image = image.resize((self.size, self.size), Image.Resampling.BICUBIC)
        return torch.from_numpy(np.array(image))
