"""Where images come from that are evaluated: a job's shards, a folder of pictures, or an ``.npz`` of all of them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from bitdance_edge.evaluation.images import image_files, read_images
from bitdance_edge.runtime import Size
from bitdance_edge.runtime.picture import MOST_BYTES, read_picture
from bitdance_edge.runtime.reading import open_regular
from bitdance_edge.runtime.values import quoted
from bitdance_edge.scale.errors import ScaleError
from bitdance_edge.scale.formats import Row, read_rows
from bitdance_edge.scale.npz import CLASSES, NpzReader
from bitdance_edge.scale.plan import Plan
from bitdance_edge.scale.plan_file import NAME, job_plan
from bitdance_edge.scale.records import Problem, check

TOGETHER = 256  # images of a batch


@dataclass(frozen=True)
class Batch:
    """Pixels uint8 ``[N, H, W, 3]``, and the class that each image is to show (None: of captions, or unknown)."""

    pixels: np.ndarray
    classes: list[int] | None = None


class Source(Protocol):
    """Images that are read a batch at a time, any number of times."""

    @property
    def name(self) -> str: ...

    @property
    def images(self) -> int: ...

    @property
    def size(self) -> Size: ...

    def batches(self) -> Iterator[Batch]: ...


@dataclass(frozen=True)
class Job:
    """The images of a job's folder, all of whose shards are made."""

    folder: Path
    plan: Plan
    name: str

    @classmethod
    def open(cls, folder: Path) -> "Job":
        """Open a job's folder. Raises: ScaleError: it is none, or a shard is missing."""
        if (plan := job_plan(folder)) is None:
            raise ScaleError(f"{folder} has no {NAME}; give the --out of: bitdance-edge bulk")
        states = [check(plan, folder, shard) for shard in range(plan.shards)]
        if missing := [state for state in states if isinstance(state, Problem)]:
            raise ScaleError(
                f"{len(missing)} of {plan.shards} shards in {folder} are not made; make them with: bitdance-edge bulk "
                f"{quoted(folder / NAME)} --out {quoted(folder)}"
            )
        return cls(folder, plan, folder.name)

    @property
    def images(self) -> int:
        return self.plan.images

    @property
    def size(self) -> Size:
        return Size.parse(self.plan.settings["size"])

    def rows(self) -> Iterator[Row]:
        """Yield all images in order. Raises: ScaleError: a shard is damaged."""
        for shard in range(self.plan.shards):
            yield from read_rows(self.folder / self.plan.file(shard), self.plan.images_of(shard))

    def batches(self) -> Iterator[Batch]:
        part: list[Row] = []
        for row in self.rows():
            part.append(row)
            if len(part) == TOGETHER:
                yield _batch(part)
                part = []
        if part:
            yield _batch(part)


@dataclass(frozen=True)
class Pictures:
    """The pictures of a folder, cropped and resized to one size."""

    folder: Path
    files: list[Path]
    size: Size

    @classmethod
    def open(cls, folder: Path, size: Size | None) -> "Pictures":
        """Open a folder; without a size, that of its first picture is taken."""
        files = image_files(folder)
        if size is None:
            with open_regular(files[0], "image", MOST_BYTES) as file:
                width, height = read_picture(file, str(files[0])).size
            size = Size(width=width, height=height)
        return cls(folder, files, size)

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def images(self) -> int:
        return len(self.files)

    def batches(self) -> Iterator[Batch]:
        for first in range(0, len(self.files), TOGETHER):
            yield Batch(read_images(self.files[first : first + TOGETHER], self.size))


@dataclass(frozen=True)
class Stack:
    """The images of an ``.npz`` file, ``arr_0``."""

    path: Path
    images: int
    size: Size

    @classmethod
    def open(cls, path: Path) -> "Stack":
        """Open a file. Raises: ScaleError: it cannot be read, or holds no images."""
        try:
            with NpzReader(path) as npz:
                return cls(path, npz.shape[0], Size(width=npz.shape[2], height=npz.shape[1]))
        except (OSError, ValueError) as error:
            raise ScaleError(f"{path} cannot be read: {error}") from None

    @property
    def name(self) -> str:
        return self.path.name

    def batches(self) -> Iterator[Batch]:
        try:
            with NpzReader(self.path) as npz:
                labels = npz.arrays().get(CLASSES)
                if labels is not None and (labels.shape != (self.images,) or labels.dtype.kind not in "iu"):
                    raise ValueError(f"its {CLASSES} is {labels.dtype} {list(labels.shape)}, not a class an image")
                first = 0
                for pixels in npz.batches(TOGETHER):
                    part = None if labels is None else [int(label) for label in labels[first : first + len(pixels)]]
                    yield Batch(pixels, part)
                    first += len(pixels)
        except (OSError, ValueError) as error:
            raise ScaleError(f"{self.path} cannot be read: {error}") from None


def open_source(path: Path, size: Size | None = None) -> Source:
    """Open a job's folder, a folder of pictures (brought to ``size``) or an ``.npz`` file.

    Raises:
        ScaleError, EvaluationError: it is none of these.
    """
    if path.is_dir():
        return Job.open(path) if (path / NAME).is_file() else Pictures.open(path, size)
    if path.suffix == ".npz" and path.is_file():
        return Stack.open(path)
    raise ScaleError(f"{path} is no folder and no .npz file; give a folder of shards or images, or a file of images")


def _batch(rows: list[Row]) -> Batch:
    classes = [row.class_id for row in rows if row.class_id is not None]
    return Batch(np.stack([row.pixels for row in rows]), classes if len(classes) == len(rows) else None)
