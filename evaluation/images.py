"""Images of a folder, brought to one size."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bitdance_edge.evaluation.errors import EvaluationError
from bitdance_edge.runtime.bundle.size import Size
from bitdance_edge.runtime.picture import load_pixels
from bitdance_edge.runtime.values import counted

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
LEAST = 2  # images that make a distribution


def image_files(folder: Path) -> list[Path]:
    """List the images of a folder and the folders in it, by path.

    Raises:
        EvaluationError: there are fewer than ``LEAST``.
    """
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and not path.is_dir())
    if len(files) < LEAST:
        raise EvaluationError(f"{folder} holds {counted(len(files), 'image')}; a distribution needs at least {LEAST}")
    return files


def read_images(files: Sequence[Path], size: Size) -> np.ndarray:
    """Read images as uint8 ``[N, H, W, 3]``, cropped and resized to ``size``; raises what ``load_pixels`` raises."""
    return np.stack([load_pixels(path, size.height, size.width) for path in files])
