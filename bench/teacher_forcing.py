"""Bits that a bundle flips by itself: every patch is sampled on top of the reference's patches (teacher forcing)."""

from collections.abc import Mapping

import numpy as np

from bitdance_edge.bench.bits import BitCounts, Predictions
from bitdance_edge.bench.launches import Launches, count_launches
from bitdance_edge.bench.work import Work
from bitdance_edge.runtime.backends.interface import Backend
from bitdance_edge.runtime.backends.onnxruntime import HostBuffer
from bitdance_edge.runtime.bundle.manifest import Bundle
from bitdance_edge.runtime.bundle.stage_names import StageName


def teacher_forced(
    bundle: Bundle, backend: Backend, work: Work, predictions: Predictions
) -> tuple[BitCounts, list[Launches]]:
    """Generate with each patch replaced by the reference's before the next one sees it.

    Returns:
        the bits of all patches, compared with the reference's, and the launches.
    """
    want = predictions.images
    patches = iter(np.split(want, want.shape[1] // bundle.model.tokens_per_step, axis=1))
    counts: list[BitCounts] = []

    def force(stage: str, buffers: Mapping[str, HostBuffer]) -> None:
        if stage != StageName.TOKENS:
            return
        x, given = buffers["x"].array, next(patches)
        counts.append(BitCounts.of(x[: len(given)], given, given))
        if len(x) > len(given) and not counts[1:] and predictions.unconditional is not None:
            x[len(given) :] = _signs(predictions.unconditional)
        x[: len(given)] = _signs(given)

    launches = count_launches(bundle, backend, work, before=force)
    return sum(counts, BitCounts()), launches


def _signs(predictions: np.ndarray) -> np.ndarray:
    return np.where(predictions > 0, np.float32(1), np.float32(-1))
