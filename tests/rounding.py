"""Tokens compared with PyTorch's wherever its prediction is farther from zero than rounding."""

from collections.abc import Sequence

import numpy as np

from bitdance_edge.bench.bits import Predictions, compare_tokens
from bitdance_edge.bench.bits import recorded_predictions as recorded_predictions


def assert_same_bits(got: np.ndarray, want: np.ndarray, predictions: Sequence[np.ndarray]) -> None:
    """Compare tokens ``[B, K, C]`` with those of a reference whose ``predictions`` were recorded."""
    assert got.shape == want.shape
    joined = Predictions.of(predictions, len(want))
    counts, patch = compare_tokens(got, want, joined, predictions[0].shape[1])
    assert not counts.wrong, f"{counts.wrong} of {counts.compared} bits are wrong, from patch {patch} on"
