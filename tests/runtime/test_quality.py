import numpy as np
import pytest

from bitdance_edge.runtime.quality import frechet_distance, psnr


def test_psnr_of_a_known_error() -> None:
    image = np.full((4, 4, 3), 250, dtype=np.uint8)
    assert psnr(image, image - np.uint8(10)) == pytest.approx(28.13, abs=0.01)
    assert psnr(np.zeros(4), np.full(4, 0.1), peak=1.0) == pytest.approx(20)


def test_psnr_does_not_wrap_around_in_uint8() -> None:
    black, white = np.zeros((2, 2, 3), np.uint8), np.full((2, 2, 3), 255, np.uint8)
    assert psnr(black, white) == psnr(white, black) == 0


def test_psnr_of_equal_images_is_infinite() -> None:
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    assert psnr(image, image.copy()) == float("inf")


def test_frechet_distance_of_known_gaussians() -> None:
    features = np.random.default_rng(0).standard_normal((40_000, 3))
    assert frechet_distance(features, features) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(features, features + 2) == pytest.approx(12, rel=1e-6)
    assert frechet_distance(features, 3 * features) == pytest.approx(3 * (3 - 1) ** 2, rel=0.02)


def test_frechet_distance_of_features_that_never_vary() -> None:
    features = np.random.default_rng(0).standard_normal((100, 3)).astype(np.float32) * [1, 0, 1]
    assert frechet_distance(features, features) == pytest.approx(0, abs=1e-6)


def test_frechet_distance_of_one_feature() -> None:
    values = np.random.default_rng(0).standard_normal((1000, 1))
    assert frechet_distance(values, values + 3) == pytest.approx(9, rel=1e-6)
