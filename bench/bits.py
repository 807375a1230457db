"""Which bits two implementations must agree in: those whose prediction is farther from zero than rounding.

A bit is the sign of what a patch predicts. On another processor, or with another order of summation, a prediction next
to zero changes its sign, and every later patch of that image is sampled on top of it.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from types import ModuleType
from typing import Any, Self

import numpy as np

ROUNDING = 1e-4  # of predictions around -1 and +1, by another order of summation in backbone, head and sampling steps


@dataclass(frozen=True, kw_only=True)
class BitCounts:
    """``within_rounding``: those of the ``different`` bits whose prediction is; the others are wrong."""

    compared: int = 0
    different: int = 0
    within_rounding: int = 0

    @classmethod
    def of(cls, got: np.ndarray, want: np.ndarray, predictions: np.ndarray) -> Self:
        """Compare tokens, or predictions, of one shape by sign; ``predictions`` are the reference's."""
        differ = (got > 0) != (want > 0)
        unclear = differ & (np.abs(predictions) <= ROUNDING)
        return cls(compared=differ.size, different=int(differ.sum()), within_rounding=int(unclear.sum()))

    @property
    def wrong(self) -> int:
        return self.different - self.within_rounding

    @property
    def wrong_share(self) -> float:
        return self.wrong / self.compared

    def __add__(self, other: "BitCounts") -> "BitCounts":
        return BitCounts(
            compared=self.compared + other.compared,
            different=self.different + other.different,
            within_rounding=self.within_rounding + other.within_rounding,
        )

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "wrong_share": self.wrong_share}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        return cls(**{name: data[name] for name in ("compared", "different", "within_rounding")})


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """What the reference predicts before the sign is taken, float32.

    Attributes:
        images: ``[B, K, C]``.
        unconditional: ``[B, P, C]`` of the first patch, where unconditional rows are sampled apart from the images.
    """

    images: np.ndarray
    unconditional: np.ndarray | None

    @classmethod
    def of(cls, patches: Sequence[np.ndarray], images: int) -> Self:
        """Join the rows ``[B or 2B, P, C]`` that ``recorded_predictions`` collected, a patch each."""
        apart = patches[0][images:]
        return cls(
            images=np.concatenate([rows[:images] for rows in patches], axis=1),
            unconditional=apart if len(apart) else None,
        )

    @classmethod
    def load(cls, arrays: Mapping[str, np.ndarray]) -> Self:
        return cls(images=arrays["predictions"], unconditional=arrays.get("unconditional_predictions"))

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays of a file that ``load`` reads."""
        apart = {} if self.unconditional is None else {"unconditional_predictions": self.unconditional}
        return {"predictions": self.images, **apart}


def compare_tokens(
    got: np.ndarray, want: np.ndarray, predictions: Predictions, tokens_per_step: int
) -> tuple[BitCounts, int | None]:
    """Compare tokens ``[B, K, C]`` of free generation patch by patch.

    Patches of an image are not compared after the first one in which a bit within rounding differs. Unconditional rows
    are not among the tokens: where one of their bits is within rounding, it counts as one that differs.

    Returns:
        the counts, and the first patch, from 0, in which a bit is wrong.
    """
    total, wrong = BitCounts(), []
    for image in range(len(want)):
        apart = predictions.unconditional
        unseen = apart is not None and bool((np.abs(apart[image]) <= ROUNDING).any())
        for patch, start in enumerate(range(0, want.shape[1], tokens_per_step)):
            part = (image, slice(start, start + tokens_per_step))
            found = BitCounts.of(got[part], want[part], predictions.images[part])
            total += found
            if found.wrong:
                wrong.append(patch)
            if found.within_rounding or unseen:
                break
    return total, min(wrong, default=None)


@contextmanager
def recorded_predictions(module: ModuleType) -> Iterator[list[np.ndarray]]:
    """Collect the predictions, float32 ``[rows, P, C]`` a patch, whose signs ``module.sample_patches`` yields."""
    predictions: list[np.ndarray] = []
    sample_patch = getattr(module, "sample_patch")  # noqa: B009  a global of a module, to the checker

    def recorded(*args: Any) -> Any:
        prediction = sample_patch(*args)
        predictions.append(prediction.numpy().copy())
        return prediction

    setattr(module, "sample_patch", recorded)  # noqa: B010
    try:
        yield predictions
    finally:
        setattr(module, "sample_patch", sample_patch)  # noqa: B010
