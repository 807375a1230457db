"""Features of all images of a source, kept on disk batch by batch: reading goes on where it was stopped."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from bitdance_edge.evaluation.extractor import Extractor, Read
from bitdance_edge.evaluation.images import LEAST
from bitdance_edge.runtime import written_whole
from bitdance_edge.runtime.values import counted
from bitdance_edge.scale.errors import ScaleError
from bitdance_edge.scale.sources import Source

NAME = 16  # hexadecimal digits of a digest that names a file


@dataclass(frozen=True)
class SourceFeatures:
    """What the network reads in a source, and the class that each image is to show, int64 ``[N]``, if that is known."""

    name: str
    read: Read
    wanted: np.ndarray | None


def read_features(source: Source, extractor: Extractor, kept: Path) -> SourceFeatures:
    """Read all images of a source.

    Args:
        kept: folder of what was read before; a batch's file is named after its pixels and the network.

    Raises:
        EvaluationError: the network cannot read them.
        ScaleError: there are fewer than ``LEAST``.
        ScaleError, RequestError: an image cannot be read.
        StorageError: the features cannot be written.
    """
    if source.images < LEAST:
        raise ScaleError(f"{source.name} has {counted(source.images, 'image')}; a distribution needs at least {LEAST}")
    parts, wanted = [], []
    with tqdm(total=source.images, desc=f"reading {source.name}", unit="image", leave=False, disable=None) as progress:
        for batch in source.batches():
            parts.append(_read(batch.pixels, extractor, kept / extractor.digest[:NAME]))
            wanted += batch.classes or []
            progress.update(len(batch.pixels))
    read = Read.joined(parts)
    return SourceFeatures(source.name, read, np.array(wanted) if len(wanted) == len(read) else None)


def _read(pixels: np.ndarray, extractor: Extractor, kept: Path) -> Read:
    content = np.ascontiguousarray(pixels)
    key = hashlib.sha256(str(content.shape).encode() + content.tobytes()).hexdigest()[:NAME]
    path = kept / f"{key}.npz"
    if (found := _kept(path)) is not None:
        return found
    read = extractor.read(content)
    with written_whole(path) as file:
        scores = {} if read.scores is None else {"scores": read.scores}
        np.savez(file, features=read.features, **scores)  # type: ignore[arg-type]
    return read


def _kept(path: Path) -> Read | None:
    """What was read before; None where there is nothing, or the file is damaged."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return Read(arrays["features"], arrays["scores"] if "scores" in arrays.files else None)
    except FileNotFoundError:
        return None
    except Exception:  # numpy raises any of a damaged file, which is then written again
        return None
