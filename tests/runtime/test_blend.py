"""What is drawn inside a mask meets the picture around it without a seam."""

import numpy as np
import pytest

from bitdance_edge.runtime.blend import blended


@pytest.mark.parametrize("shape", [(32, 32), (64, 48), (300, 211)])
def test_a_linear_offset_around_is_continued_inside(shape: tuple[int, int]) -> None:
    """A plane is harmonic: where the drawing is off by one, the membrane is that plane, and nothing is to be seen."""
    height, width = shape
    drawn = np.random.default_rng(1).integers(60, 180, (*shape, 3)).astype(np.uint8)
    rows, columns = np.indices(shape)
    plane = 20 + 25 * rows / height - 30 * columns / width
    original = np.rint(drawn + plane[..., None]).astype(np.uint8)
    inside = np.zeros(shape, bool)
    inside[height // 4 : 3 * height // 4, width // 5 : 2 * width // 3] = True
    inside[height // 2 :, width // 3] = True  # to the edge of the picture, and one pixel wide
    joined = blended(drawn, original, inside)
    np.testing.assert_array_equal(joined[~inside], original[~inside])
    assert np.abs(joined.astype(int) - original)[inside].max() <= 2


def test_what_touches_the_edge_of_the_picture_goes_on_level() -> None:
    drawn, original = np.full((40, 40, 3), 100, np.uint8), np.full((40, 40, 3), 110, np.uint8)
    inside = np.zeros((40, 40), bool)
    inside[:, :20] = True
    np.testing.assert_array_equal(blended(drawn, original, inside), original)


def test_nothing_inside_is_the_original() -> None:
    drawn, original = np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), 9, np.uint8)
    np.testing.assert_array_equal(blended(drawn, original, np.zeros((8, 8), bool)), original)


def test_levels_stay_in_range() -> None:
    drawn, original = np.full((16, 16, 3), 250, np.uint8), np.full((16, 16, 3), 255, np.uint8)
    drawn[:8] = 200
    inside = np.zeros((16, 16), bool)
    inside[4:12, 4:12] = True
    joined = blended(drawn, original, inside)
    assert joined[inside].min() >= 200 and joined[inside].max() <= 255
