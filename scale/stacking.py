"""All images of a source in one ``.npz``, as ADM's evaluation suite reads them."""

from pathlib import Path

import numpy as np
from tqdm import tqdm

from bitdance_edge.runtime import written_whole
from bitdance_edge.scale.npz import CLASSES, NpzWriter
from bitdance_edge.scale.sources import Source


def write_stack(source: Source, path: Path) -> None:
    """Write ``arr_0``, uint8 ``[N, H, W, 3]``, and the classes as ``arr_1`` where they are known.

    Raises:
        StorageError: the file cannot be written.
        ScaleError, RequestError: an image cannot be read.
    """
    shape, classes = (source.images, source.size.height, source.size.width, 3), []
    with (
        tqdm(total=source.images, desc="writing", unit="image", leave=False, disable=None) as progress,
        written_whole(path) as file,
        NpzWriter(file, shape) as npz,
    ):
        for batch in source.batches():
            npz.add(batch.pixels)
            classes += batch.classes or []
            progress.update(len(batch.pixels))
        npz.finish({CLASSES: np.array(classes)} if len(classes) == source.images else {})
