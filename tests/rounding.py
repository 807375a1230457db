"""Which bits two implementations must agree in: those whose prediction is farther from zero than rounding."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType

import numpy as np
import pytest
from torch import Tensor

ROUNDING = 1e-4  # of predictions around -1 and +1, by another order of summation in backbone, head and sampling steps


@contextmanager
def recorded_predictions(module: ModuleType) -> Iterator[list[np.ndarray]]:
    """Collect the predictions, float32 ``[rows, P, C]`` a patch, whose signs ``module.sample_patches`` yields."""
    predictions: list[np.ndarray] = []
    sample_patch = module.sample_patch

    def recorded(*args: object) -> Tensor:
        prediction = sample_patch(*args)
        predictions.append(prediction.numpy().copy())
        return prediction

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(module, "sample_patch", recorded)
        yield predictions


def assert_same_bits(got: np.ndarray, want: np.ndarray, predictions: Sequence[np.ndarray]) -> None:
    """Compare tokens ``[B, K*P, C]``, patch after patch, wherever the reference's ``predictions`` are clear.

    A bit whose prediction is within rounding of zero may differ; nothing is then demanded of the later patches of that
    image, which are sampled on top of it. Unconditional rows that are sampled apart follow the B images' own rows.
    """
    assert got.shape == want.shape
    images, patch = len(got), predictions[0].shape[1]
    for image in range(images):
        for number, rows in enumerate(predictions):
            part = slice(number * patch, (number + 1) * patch)
            differ = got[image, part] != want[image, part]
            wrong = differ & (np.abs(rows[image]) > ROUNDING)
            assert not wrong.any(), f"image {image}, patch {number}: {wrong.sum()} of {wrong.size} bits differ"
            unclear = any((np.abs(row) <= ROUNDING).any() for row in rows[images + image :: images])
            if differ.any() or unclear:
                break
