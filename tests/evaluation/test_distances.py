"""Measures over features, against values that are known or computed otherwise."""

import numpy as np
import pytest

from bitdance_edge.evaluation.bootstrap import resamples, standard_errors
from bitdance_edge.evaluation.distances import inception_score, precision_recall
from bitdance_edge.evaluation.similarity import mean_ssim, ssim
from bitdance_edge.runtime.quality import Gaussian, frechet_distance

RANDOM = np.random.default_rng(5)


def plain_precision(points: np.ndarray, manifold: np.ndarray) -> float:
    """The definition, point by point."""
    inside = 0
    for point in points:
        for centre in manifold:
            radius = np.sort(np.linalg.norm(manifold - centre, axis=1))[3]
            if np.linalg.norm(point - centre) <= radius:
                inside += 1
                break
    return inside / len(points)


def test_precision_and_recall_are_those_of_the_definition() -> None:
    images, real = RANDOM.normal(size=(60, 5)), RANDOM.normal(0.5, 1.3, (80, 5))
    assert precision_recall(images, real) == (plain_precision(images, real), plain_precision(real, images))


def test_precision_and_recall_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    images, real = RANDOM.normal(size=(60, 5)), RANDOM.normal(0.5, 1.3, (80, 5))
    whole = precision_recall(images, real)
    monkeypatch.setattr("bitdance_edge.evaluation.distances.ROWS", 7)
    assert precision_recall(images, real) == whole


def test_images_that_are_far_or_all_alike() -> None:
    real = RANDOM.normal(size=(50, 4))
    assert precision_recall(real + 1000, real) == (0, 0)
    precision, recall = precision_recall(np.repeat(real[:1], 50, axis=0), real)
    assert precision == 1 and recall <= 0.02


def test_the_inception_score_of_known_scores() -> None:
    sure = np.repeat(np.eye(10) * 100, 20, axis=0)
    assert inception_score(sure) == pytest.approx(10, rel=1e-6)
    assert inception_score(np.zeros((50, 10))) == pytest.approx(1)
    assert inception_score(sure[:20]) == pytest.approx(1)


def test_the_inception_score_does_not_depend_on_sorting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitdance_edge.evaluation.distances.SPLIT", 100)
    assert inception_score(np.repeat(np.eye(10) * 100, 100, axis=0)) > 9  # sorted parts would have one class each: 1


def test_the_distance_of_statistics_is_that_of_their_features() -> None:
    first, second = RANDOM.normal(size=(40, 6)), RANDOM.normal(1, 2, (50, 6))
    gaussians = Gaussian.fitted(first), Gaussian.fitted(second)
    assert gaussians[0].distance(gaussians[1]) == pytest.approx(frechet_distance(first, second), rel=1e-12)
    assert gaussians[1].distance(gaussians[0]) == pytest.approx(frechet_distance(first, second), rel=1e-12)


def test_the_distance_is_that_of_the_matrix_square_root() -> None:
    from scipy.linalg import sqrtm

    first, second = RANDOM.normal(size=(40, 6)), RANDOM.normal(1, 2, (50, 6))
    one, other = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    means = np.square(first.mean(0) - second.mean(0)).sum()
    want = means + np.trace(one + other - 2 * np.real(np.asarray(sqrtm(one @ other))))
    assert frechet_distance(first, second) == pytest.approx(want, rel=1e-9)


def test_errors_of_a_mean_are_those_of_statistics() -> None:
    values = RANDOM.normal(3, 2, 400)
    found = standard_errors(lambda rows: {"mean": float(values[rows].mean())}, 400, 500)
    assert found["mean"] == pytest.approx(values.std() / 20, rel=0.15)
    assert standard_errors(lambda rows: {"mean": 1.0}, 400, 1) == {}


def test_draws_are_always_the_same() -> None:
    assert [rows.tolist() for rows in resamples(5, 2)] == [rows.tolist() for rows in resamples(5, 2)]


def test_similarity_of_equal_and_other_images() -> None:
    images = RANDOM.integers(0, 256, (2, 16, 16, 3), np.uint8)
    assert ssim(images[0], images[0]) == 1
    assert mean_ssim(images, images[::-1]) == pytest.approx(ssim(images[0], images[1])) and ssim(*images) < 0.2
