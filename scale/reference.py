"""What images are compared with: real images, or statistics of them that were saved."""

from dataclasses import dataclass
from pathlib import Path
from zipfile import ZipFile

import numpy as np

from bitdance_edge.evaluation.extractor import Extractor
from bitdance_edge.runtime import Size, written_whole
from bitdance_edge.runtime.quality import Gaussian
from bitdance_edge.scale.errors import ScaleError
from bitdance_edge.scale.features import SourceFeatures, read_features
from bitdance_edge.scale.npz import IMAGES
from bitdance_edge.scale.sources import open_source

MEAN, COVARIANCE = "mu", "sigma"  # their names in files of statistics, as pytorch-fid and ADM's suite have them
ENTRIES = tuple(f"{name}.npy" for name in (MEAN, COVARIANCE, "extractor"))
MOST_BYTES = 150_000_000  # of statistics: of 4096 features


@dataclass(frozen=True)
class Reference:
    """The reference's Gaussian, and its features ``[M, F]`` where its images are known."""

    name: str
    gaussian: Gaussian
    features: np.ndarray | None


def open_reference(path: Path, extractor: Extractor, size: Size, kept: Path) -> Reference:
    """Open a folder or a job (as ``open_source``), an ``.npz`` of images, of statistics, or of both as ADM's are.

    Raises:
        ScaleError: it is none of these, or of another network, or holds too few images.
        EvaluationError: its images cannot be read.
    """
    names = _names(path) if path.suffix == ".npz" and path.is_file() else [IMAGES]
    features = read_features(open_source(path, size), extractor, kept).read.features if IMAGES in names else None
    if (MEAN in names) != (COVARIANCE in names):
        raise ScaleError(f"{path} holds {', '.join(names)}; statistics are {MEAN} and {COVARIANCE}")
    if MEAN in names:
        return Reference(path.name, _statistics(path, extractor), features)
    if features is None:
        raise ScaleError(f"{path} holds {', '.join(names)}; it must hold {IMAGES}, or {MEAN} and {COVARIANCE}")
    return Reference(path.name, Gaussian.fitted(features), features)


def save_statistics(path: Path, found: SourceFeatures, extractor: Extractor) -> None:
    """Write mean and covariance of features, for later evaluations. Raises: StorageError: it cannot be written."""
    gaussian = Gaussian.fitted(found.read.features)
    with written_whole(path) as file:
        np.savez(
            file,
            mu=gaussian.mean,
            sigma=gaussian.covariance,
            images=np.array(len(found.read)),
            extractor=np.array(extractor.digest),
        )


def _names(path: Path) -> list[str]:
    """The names of a file's arrays."""
    try:
        with np.load(path, allow_pickle=False) as found:
            return found.files
    except Exception as error:  # numpy raises any of a damaged file
        raise ScaleError(f"{path} cannot be read: {error}") from None


def _statistics(path: Path, extractor: Extractor) -> Gaussian:
    try:
        with ZipFile(path) as archive:
            if (size := sum(entry.file_size for entry in archive.infolist() if entry.filename in ENTRIES)) > MOST_BYTES:
                raise ValueError(f"its statistics have {size:,} bytes; the limit is {MOST_BYTES:,}")
        with np.load(path, allow_pickle=False) as found:
            of = str(found["extractor"]) if "extractor" in found.files else extractor.digest
            mean, covariance = (np.asarray(found[name], np.float64) for name in (MEAN, COVARIANCE))
    except Exception as error:  # as above
        raise ScaleError(f"{path} cannot be read: {error}") from None
    if of != extractor.digest:
        raise ScaleError(f"{path} has statistics of another network's features; save them again with this one")
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise ScaleError(f"{path} has statistics that are not finite; save them again with --save-statistics")
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise ScaleError(
            f"{path} has {MEAN} {list(mean.shape)} and {COVARIANCE} {list(covariance.shape)}, not [F] and [F, F]; "
            "give another file, or images"
        )
    return Gaussian(mean, covariance)
