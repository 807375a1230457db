"""Tokens compared with PyTorch's wherever its prediction is farther from zero than rounding."""

from collections.abc import Mapping, Sequence

import numpy as np

from bitdance_edge.bench.bits import ROUNDING, Predictions, compare_tokens
from bitdance_edge.bench.bits import recorded_predictions as recorded_predictions
from bitdance_edge.calibration.sessions import BundleSessions
from bitdance_edge.runtime import Bundle, Request
from bitdance_edge.runtime.backends.onnxruntime import HostBuffer
from bitdance_edge.runtime.bundle.stage_names import StageName


def predictions_of(bundle: Bundle, request: Request) -> list[np.ndarray]:
    """What a bundle predicts for each patch of a request's images ``[B or 2B, P, C]``, run as one batch."""
    found: list[np.ndarray] = []

    def note(stage: str, buffers: Mapping[str, HostBuffer]) -> None:
        if stage == StageName.TOKENS:
            found.append(buffers["x"].read().copy())

    with BundleSessions(bundle, None).pipeline(16, before=note) as pipeline:
        pipeline.generate(request)
    return found


def is_clear(bundle: Bundle, request: Request) -> bool:
    """Whether no prediction of a request is within rounding of zero, so that its bits are those of any processor."""
    return all(bool((np.abs(found) > ROUNDING).all()) for found in predictions_of(bundle, request))


def assert_same_bits(got: np.ndarray, want: np.ndarray, predictions: Sequence[np.ndarray]) -> None:
    """Compare tokens ``[B, K, C]`` with those of a reference whose ``predictions`` were recorded."""
    assert got.shape == want.shape
    joined = Predictions.of(predictions, len(want))
    counts, patch = compare_tokens(got, want, joined, predictions[0].shape[1])
    assert not counts.wrong, f"{counts.wrong} of {counts.compared} bits are wrong, from patch {patch} on"
