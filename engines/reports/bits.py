"""How far apart two backends' bits are: a bit is the sign of a prediction, and one next to zero may fall either way."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bitdance_edge.engines.inner_tensors import last_layer
from bitdance_edge.runtime.bundle.stage_names import StageName

BITS = "tokens"  # the output that holds them


def bit_error(want: np.ndarray, got: np.ndarray, predictions: np.ndarray) -> float:
    """Return the largest prediction whose bit differs, over the largest of all; the three are of one shape.

    Args:
        predictions: those of ``want``.
    """
    magnitudes = np.abs(predictions.astype(np.float64))
    return float(magnitudes[want != got].max(initial=0.0) / (magnitudes.max(initial=0.0) or 1.0))


def predictions(
    stage: str, graph: Path, patch_side: int, inputs: Mapping[str, np.ndarray], made: Mapping[str, Any]
) -> np.ndarray | None:
    """Return what the bits of a stage are the signs of, in their shape; None where it makes none, or it is not known.

    Args:
        made: the reference's tensors by name, inner ones too.
    """
    if stage == StageName.TOKENS:
        return inputs["x"]
    latent = made.get(last_layer(graph) or "") if stage == StageName.ENCODER else None
    if latent is None:
        return None
    side = patch_side  # [B, C, h, w] to patches [B, h/p, w/p, p*p, C]
    batch, bits, height, width = latent.shape
    blocks = np.asarray(latent).reshape(batch, bits, height // side, side, width // side, side)
    return blocks.transpose(0, 2, 4, 3, 5, 1).reshape(batch, height // side, width // side, side * side, bits)
