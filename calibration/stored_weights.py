"""What a graph stores of a rounded weight: codes, scales and, of NVFP4, the factor of all scales."""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import ml_dtypes
import numpy as np
from onnx import TensorProto

from bitdance_edge.calibration.weights import CODES, FOUR_BITS, Encoded, group_of, scale_type
from bitdance_edge.runtime.bundle.dtypes import ONNX_NUMBERS

# Bits of E2M1 by twice its value, an int8 seen as a byte; what no number has is not used.
NVFP4_BITS = (
    (np.arange(256, dtype=np.uint8).view(np.int8) / np.float32(2)).astype(ml_dtypes.float4_e2m1fn).view(np.uint8)
)


@dataclass(frozen=True)
class Part:
    """One tensor that a graph stores of an encoded weight: its name behind the weight's, ONNX type, shape and bytes."""

    suffix: str
    data_type: int
    dims: tuple[int, ...]
    content: Callable[[Encoded], bytes]


def parts(precision: str, shape: tuple[int, ...], outputs_axis: int, scales: int) -> list[Part]:
    """What a graph stores of a weight in a format: codes, scales and, of NVFP4, the factor of the scales.

    Args:
        shape: of the weight as its node reads it: a matrix, or the kernel of a convolution.
        outputs_axis: the axis of that shape that the outputs are on.
        scales: ONNX type of the scales.
    """
    outputs = shape[outputs_axis]
    inputs = prod(shape) // outputs
    group, flipped = group_of(precision, inputs), len(shape) == 2 and outputs_axis == 1
    per_output = group == inputs and precision not in FOUR_BITS
    grouped = (inputs // group, outputs) if flipped else (outputs, inputs // group)
    scale_dims = (outputs,) if per_output else grouped
    number = scale_type(ONNX_NUMBERS[scales])

    def codes(encoded: Encoded) -> bytes:
        numbers = encoded.numbers.T if flipped else encoded.numbers
        return pack(np.ascontiguousarray(numbers), precision)

    def scale_values(encoded: Encoded) -> bytes:
        values = encoded.scales.values.T if flipped else encoded.scales.values
        if precision == "nvfp4":
            return np.ascontiguousarray(values / encoded.scales.tensor).astype(ml_dtypes.float8_e4m3fn).tobytes()
        return np.ascontiguousarray(values).astype(number).tobytes()

    stored = [Part("codes", CODES[precision], shape, codes)]
    if precision != "nvfp4":
        return [*stored, Part("scales", scales, scale_dims, scale_values)]
    factor = Part("factor", scales, (), lambda encoded: np.array(encoded.scales.tensor).astype(number).tobytes())
    return [*stored, Part("scales", TensorProto.FLOAT8E4M3FN, scale_dims, scale_values), factor]


def pack(numbers: np.ndarray, precision: str) -> bytes:
    """Numbers as ONNX stores them: two of 4 bits in a byte, the first in its low half."""
    if precision not in FOUR_BITS:
        return numbers.tobytes()
    flat = numbers.ravel()
    nibbles = flat.view(np.uint8) & 15 if precision == "int4" else NVFP4_BITS[flat.view(np.uint8)]
    if len(nibbles) % 2:
        nibbles = np.append(nibbles, np.uint8(0))
    return (nibbles[0::2] | (nibbles[1::2] << 4)).tobytes()
