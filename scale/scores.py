"""Scores of images against a reference, with error bars, and of two sets of the same seeds against each other."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from bitdance_edge.evaluation.bootstrap import standard_errors
from bitdance_edge.evaluation.distances import NEIGHBOURS, inception_score, precision_recall
from bitdance_edge.evaluation.extractor import Extractor
from bitdance_edge.runtime.quality import Gaussian
from bitdance_edge.scale.errors import ScaleError
from bitdance_edge.scale.features import SourceFeatures
from bitdance_edge.scale.reference import Reference

RESAMPLES = 100


@dataclass(frozen=True)
class Figure:
    """A value and its standard error; None: not estimated."""

    value: float
    error: float | None = None


Figures = dict[str, Figure]


def scores(found: SourceFeatures, reference: Reference | None, extractor: Extractor, times: int) -> Figures:
    """Score images: the distance to the reference, precision and recall, inception score, class agreement.

    Those that features, scores, classes or reference do not allow are absent. Of distance, inception score and
    agreement the error is the bootstrap's over ``times`` draws of the images, the reference fixed; of precision and
    recall it is that of a share of so many points.

    Raises:
        ScaleError: the reference is of other features.
    """
    if reference is not None and len(reference.gaussian.mean) != found.read.features.shape[1]:
        raise ScaleError(
            f"{reference.name} has statistics of {len(reference.gaussian.mean)} features, and the network gives "
            f"{found.read.features.shape[1]}: it is of another network"
        )

    def measured(rows: np.ndarray | slice) -> dict[str, float]:
        return dict(_measured(found, reference, extractor, rows))

    errors = standard_errors(measured, len(found.read), times)
    figures = {name: Figure(value, errors.get(name)) for name, value in measured(slice(None)).items()}
    if reference is not None and reference.features is not None:
        figures |= _manifolds(found.read.features, reference.features)
    return figures


def difference(
    found: SourceFeatures, other: SourceFeatures, reference: Reference | None, extractor: Extractor, times: int
) -> Figures:
    """How much more ``other`` has of each score than ``found``; images of the same seeds are drawn together."""

    def measured(rows: np.ndarray | slice) -> dict[str, float]:
        first, second = (dict(_measured(each, reference, extractor, rows)) for each in (found, other))
        return {name: second[name] - value for name, value in first.items()}

    errors = standard_errors(measured, len(found.read), times)
    return {name: Figure(value, errors.get(name)) for name, value in measured(slice(None)).items()}


def _measured(
    found: SourceFeatures, reference: Reference | None, extractor: Extractor, rows: np.ndarray | slice
) -> Iterator[tuple[str, float]]:
    read = found.read
    if reference is not None:
        name = "fid" if extractor.is_inception else "frechet"
        yield name, reference.gaussian.distance(Gaussian.fitted(read.features[rows]))
    if read.scores is None:
        return
    yield "inception_score", inception_score(read.scores[rows])
    # The standard Inception's classes are not in the order of ImageNet's.
    if found.wanted is not None and not extractor.is_inception and found.wanted.max() < read.scores.shape[1]:
        yield "class_agreement", float(np.mean(read.scores[rows].argmax(1) == found.wanted[rows]))


def _manifolds(features: np.ndarray, reference: np.ndarray) -> Figures:
    if min(len(features), len(reference)) <= NEIGHBOURS:
        return {}
    precision, recall = precision_recall(features, reference)
    return {"precision": _share(precision, len(features)), "recall": _share(recall, len(reference))}


def _share(value: float, points: int) -> Figure:
    return Figure(value, float(np.sqrt(value * (1 - value) / points)))
