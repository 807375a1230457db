"""Measures over features: precision and recall, and the inception score. The Fréchet distance is the runtime's."""

import numpy as np

NEIGHBOURS = 3  # Kynkäänniemi et al., arXiv 1904.06991, section 3
SPLIT = 5000  # images of a part of the inception score, as in ADM's evaluation suite
ROWS = 1024  # of a matrix of distances that is held at once
ORDER_SEED = 0


def precision_recall(features: np.ndarray, reference: np.ndarray) -> tuple[float, float]:
    """Return the shares of images inside the reference's manifold, and of the reference inside the images'.

    A point is inside a manifold where it is no farther from one of its points than that one's third-nearest neighbour:
    Kynkäänniemi et al., arXiv 1904.06991, eq. 1 and 2.

    Args:
        features, reference: ``[N, F]`` and ``[M, F]``, with N and M above ``NEIGHBOURS``.
    """
    centre = reference.mean(0, dtype=np.float64)  # distances do not change, and rounding is smaller
    images, real = features.astype(np.float64) - centre, reference.astype(np.float64) - centre
    return _share_inside(images, real), _share_inside(real, images)


def _share_inside(points: np.ndarray, manifold: np.ndarray) -> float:
    radii = np.concatenate(
        [
            np.partition(_squared_distances(manifold[rows], manifold), NEIGHBOURS, axis=1)[:, NEIGHBOURS]
            for rows in _parts(len(manifold))
        ]
    )
    inside = [(_squared_distances(points[rows], manifold) <= radii).any(axis=1) for rows in _parts(len(points))]
    return float(np.concatenate(inside).mean())


def _squared_distances(rows: np.ndarray, points: np.ndarray) -> np.ndarray:
    squares = np.square(rows).sum(1)[:, None] + np.square(points).sum(1) - 2 * rows @ points.T
    return squares.clip(min=0)


def _parts(count: int) -> list[slice]:
    return [slice(first, first + ROWS) for first in range(0, count, ROWS)]


def inception_score(scores: np.ndarray) -> float:
    """Return the mean over parts of the exponential of the mean divergence of each image's classes from the part's.

    Salimans et al., arXiv 1606.03498, section 4. The images are put in a seeded random order first, so that images
    that are sorted by class do not make parts of few classes.

    Args:
        scores: ``[N, classes]``, before the softmax.
    """
    logs = scores.astype(np.float64) - scores.max(1, keepdims=True)
    logs -= np.log(np.exp(logs).sum(1, keepdims=True))
    logs = logs[np.random.default_rng(ORDER_SEED).permutation(len(logs))]
    parts = []
    for first in range(0, len(logs), SPLIT):
        part = logs[first : first + SPLIT]
        chances = np.exp(part)
        parts.append(np.exp((chances * (part - np.log(chances.mean(0).clip(min=1e-300)))).sum(1).mean()))
    return float(np.mean(parts))
