"""Bits that differ within rounding are told from wrong ones, and what follows the former is not compared."""

from dataclasses import replace

import numpy as np
import pytest

from bitdance_edge.bench.agreement import Agreement, require_same
from bitdance_edge.bench.bits import BitCounts, Predictions, compare_tokens
from bitdance_edge.bench.errors import BenchError
from bitdance_edge.runtime import Bundle

PATCH, PATCHES, BITS = 2, 3, 4
CLEAR, UNCLEAR = 1e-3, 1e-5


def reference(images: int = 1, unconditional: float | None = None) -> tuple[np.ndarray, Predictions]:
    """Tokens that are all 1, clearly predicted."""
    tokens = np.ones((images, PATCH * PATCHES, BITS), np.int8)
    apart = None if unconditional is None else np.full((images, PATCH, BITS), unconditional, np.float32)
    return tokens, Predictions(images=np.full(tokens.shape, CLEAR, np.float32), unconditional=apart)


def test_a_clearly_predicted_bit_that_differs_is_wrong() -> None:
    want, predictions = reference()
    got = want.copy()
    got[0, PATCH, 1] = -1
    counts, patch = compare_tokens(got, want, predictions, PATCH)
    assert (counts.compared, counts.different, counts.wrong, patch) == (want.size, 1, 1, 1)


def test_nothing_after_a_difference_within_rounding_is_compared_in_that_image() -> None:
    want, predictions = reference(images=2)
    predictions.images[0, PATCH, 1] = UNCLEAR
    got = want.copy()
    got[0, PATCH:] = -1
    got[0, PATCH, 0] = got[0, PATCH + 1] = 1
    got[0, PATCH, 2:] = 1
    counts, patch = compare_tokens(got, want, predictions, PATCH)
    assert counts == BitCounts(compared=want.size - PATCH * BITS, different=1, within_rounding=1)
    assert patch is None


def test_a_difference_within_rounding_excuses_no_other_bit_of_its_patch() -> None:
    want, predictions = reference()
    predictions.images[0, 0, 0] = UNCLEAR
    got = want.copy()
    got[0, 0, :2] = -1
    counts, patch = compare_tokens(got, want, predictions, PATCH)
    assert counts == BitCounts(compared=PATCH * BITS, different=2, within_rounding=1)
    assert patch == 0


def test_bits_within_rounding_that_agree_change_nothing() -> None:
    want, predictions = reference()
    predictions.images[0, 0] = UNCLEAR
    counts, _ = compare_tokens(want, want, predictions, PATCH)
    assert counts == BitCounts(compared=want.size)


@pytest.mark.parametrize(("prediction", "patches"), [(CLEAR, PATCHES), (UNCLEAR, 1)])
def test_unconditional_rows_within_rounding_end_the_comparison(prediction: float, patches: int) -> None:
    want, predictions = reference(unconditional=prediction)
    counts, _ = compare_tokens(want, want, predictions, PATCH)
    assert counts.compared == patches * PATCH * BITS


def test_recorded_rows_are_split_into_images_and_unconditional_ones() -> None:
    first, later = np.ones((4, PATCH, BITS), np.float32), np.zeros((2, PATCH, BITS), np.float32)
    first[2:] = -1
    joined = Predictions.of([first, later], images=2)
    assert joined.images.shape == (2, 2 * PATCH, BITS)
    assert joined.unconditional is not None
    assert (joined.unconditional == -1).all()
    assert Predictions.of([later], images=2).unconditional is None
    loaded = Predictions.load(joined.arrays())
    assert np.array_equal(loaded.images, joined.images)


def test_speed_is_refused_for_wrong_bits_only(bundle: Bundle) -> None:
    rounding = BitCounts(compared=1000, different=1, within_rounding=1)
    found = Agreement(free=rounding, first_patch=None, forced=rounding, levels=1, psnr=60.0, calibration=None)
    require_same(bundle, found, None)
    wrong = replace(found, free=BitCounts(compared=1000, different=3, within_rounding=1), first_patch=2)
    with pytest.raises(BenchError, match=r"0\.2 % of 1000 bits .* from patch 2 on .* --max-bit-flips 0\.202%"):
        require_same(bundle, wrong, None)
    require_same(bundle, wrong, 0.01)
