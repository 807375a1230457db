"""The number formats that a layer can be quantised to, as functions of numpy arrays.

INT8 is symmetric, -127 to 127. FP8 is E4M3 (OCP 8-bit floating point, https://arxiv.org/abs/2209.05433), up to 448.
INT4 is for weights alone, in groups of ``GROUP`` along the inputs.
"""

from dataclasses import dataclass

import ml_dtypes
import numpy as np

GROUP = 128  # weights that share one INT4 scale


@dataclass(frozen=True)
class Format:
    """A format of activations and weights; ``largest`` is its largest number."""

    name: str
    largest: float

    def rounded(self, values: np.ndarray, limit: float) -> np.ndarray:
        """What is left of float64 ``values`` when the range up to ``limit`` is spread over the format's."""
        scaled = np.clip(values / (limit / self.largest), -self.largest, self.largest)
        numbers = np.rint(scaled) if self.name == "int8" else scaled.astype(ml_dtypes.float8_e4m3fn).astype(np.float64)
        return numbers * (limit / self.largest)


FORMATS = {"int8": Format("int8", 127.0), "fp8": Format("fp8", 448.0)}
PRECISIONS = ("int8", "fp8", "int4")
