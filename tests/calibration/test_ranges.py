"""Limits of scales, and the formats they are for."""

import numpy as np
import pytest

from bitdance_edge.calibration.ranges import BINS, FORMATS, Format, Histogram, limit, squared_error

INT8, FP8 = FORMATS["int8"], FORMATS["fp8"]


def histogram(*parts: tuple[np.ndarray, float]) -> Histogram:
    made = Histogram()
    for values, weight in parts:
        assert made.add(values, weight)
    return made


def normal(size: int = 200_000, scale: float = 1.0) -> np.ndarray:
    return scale * np.random.default_rng(0).standard_normal(size)


def test_edges_double_without_losing_a_count() -> None:
    values = normal()
    made = histogram(
        *((part * scale, 1.0) for part, scale in zip(np.split(values, 4), (1e-6, 1, 30, 1e4), strict=True))
    )
    assert made.counts.sum() == values.size
    assert made.largest <= made.edge <= 2 * made.largest
    assert made.counts[BINS // 2 :].sum() >= 1


@pytest.mark.parametrize("number", [INT8, FP8])
def test_values_of_the_format_are_unchanged(number: Format) -> None:
    values = np.array([-number.largest, -1.0, 0.0, 2.0, number.largest])
    assert (number.rounded(values, number.largest) == values).all()
    assert (number.rounded(10 * values, number.largest)[[0, -1]] == values[[0, -1]]).all()


def test_percentile_cuts_an_outlier_that_max_keeps() -> None:
    made = histogram((np.append(normal(), 100.0), 1.0))
    assert limit(made, "max", 99.9, INT8) == 100
    assert 3 < limit(made, "percentile", 99.9, INT8) < 3.6


def test_mse_is_the_best_of_the_candidates_and_fp8_clips_less() -> None:
    made = histogram((normal(), 1.0))
    best = limit(made, "mse", 0, INT8)
    assert squared_error(made, best, INT8) <= min(squared_error(made, x, INT8) for x in (1.5, 2, 3, made.largest))
    assert limit(made, "mse", 0, FP8) >= best


def test_entropy_does_not_clip_a_distribution_without_tail() -> None:
    assert limit(histogram((np.linspace(-1, 1, 100_000), 1.0)), "entropy", 0, INT8) == pytest.approx(1, abs=0.02)
    assert limit(histogram((np.ones(10), 1.0)), "entropy", 0, INT8) == 1


def test_a_time_that_matters_more_moves_the_limit_to_its_range() -> None:
    narrow, wide = normal(scale=0.2), normal(scale=2.0)
    flat = limit(histogram((narrow, 1.0), (wide, 1.0)), "mse", 0, INT8)
    assert limit(histogram((narrow, 1.0), (wide, 0.001)), "mse", 0, INT8) < 0.8 * flat


def test_only_zeros_have_no_limit_and_nan_is_not_counted() -> None:
    made = histogram((np.zeros(5), 1.0))
    assert {limit(made, name, 99, INT8) for name in ("max", "percentile", "entropy", "mse")} == {0.0}
    for bad in (np.nan, np.inf):
        assert not made.add(np.array([1.0, bad]), 1.0)
    assert made.counts.sum() == 5
