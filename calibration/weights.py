"""Weights in 8 and 4 bits: how their scales are chosen, their codes, and what of them a graph stores.

A weight is taken as a matrix ``[outputs, inputs]``. INT8 and FP8 (E4M3) have a scale for each output. INT4 has one for
each group of inputs, and NVFP4 (E2M1, https://arxiv.org/abs/2509.25149) one in FP8 for 16 inputs, times one for the
tensor. Scales are rounded to the type in which the graph has them before codes are made with them.

Of several scales a group of 4 bits gets the one that leaves the least squared error: values beyond its reach are
clipped, which costs less than a coarser step for all others.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import ml_dtypes
import numpy as np
from onnx import TensorProto

from bitdance_edge.calibration.errors import CalibrationError

GROUP = 128  # inputs that share one INT4 scale, where the number of inputs is a multiple of it
BLOCK = 16  # inputs that share one NVFP4 scale
INT4_REACH = (7.0, 7.4, 7.9, 8.5, 9.2, 10.0)  # largest magnitude of a group over the scales that are tried
NVFP4_REACH = (6.0, 4.0)
NVFP4_VALUES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
# Index of the nearest value by quarters: what is between two values changes at a multiple of one quarter.
NVFP4_NEAREST = np.searchsorted((NVFP4_VALUES[1:] + NVFP4_VALUES[:-1]) / 2, (np.arange(25) + 0.5) / 4).astype(np.uint8)
# FP8 codes by the bits of the float16 that is nearest, and what each code stands for.
_HALVES = np.nan_to_num(np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32))
FP8_CODES = np.clip(_HALVES, -448, 448).astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
FP8_VALUES = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
LARGEST = {"int8": 127.0, "fp8": 448.0, "int4": 7.0, "nvfp4": 6.0}
FP8_LARGEST, FP8_SMALLEST = np.float32(448), np.float32(2.0**-9)
STRIP = 1 << 18  # weights that are rounded at once: what a core's cache holds
CODES = {
    "int8": TensorProto.INT8,
    "fp8": TensorProto.FLOAT8E4M3FN,
    "int4": TensorProto.INT4,
    "nvfp4": TensorProto.FLOAT4E2M1,
}
FOUR_BITS = ("int4", "nvfp4")
INTEGERS = {"int8": (-127, 127), "int4": (-8, 7)}
# How numbers are kept in memory: a byte each, E2M1 as twice its value.
COMPACT = {"int8": np.int8, "int4": np.int8, "fp8": ml_dtypes.float8_e4m3fn, "nvfp4": np.int8}


def group_of(precision: str, inputs: int) -> int:
    """The number of inputs that share a scale: of 4 bits; all of them in 8 bits.

    Raises:
        CalibrationError: the inputs do not divide into groups.
    """
    if precision not in FOUR_BITS:
        return inputs
    largest = GROUP if precision == "int4" else BLOCK
    group = next((size for size in (largest, 64, 32, BLOCK) if size <= largest and inputs % size == 0), 0)
    if not group:
        raise CalibrationError(f"{inputs} inputs do not divide into groups of {BLOCK}: {precision} needs that")
    return group


@dataclass(frozen=True)
class Scales:
    """Float32 ``[outputs, inputs / group]``, with ``tensor`` the factor of all NVFP4 scales (else 1)."""

    values: np.ndarray
    tensor: np.float32


@dataclass(frozen=True)
class Encoded:
    """A weight as codes and scales.

    Attributes:
        numbers: ``[outputs, inputs]`` of ``COMPACT``'s type, what the codes stand for before they are scaled.
        error, size: sums of squares of what was rounded away, and of the weight.
    """

    precision: str
    numbers: np.ndarray
    scales: Scales
    error: float
    size: float

    @property
    def group(self) -> int:
        return self.numbers.shape[1] // self.scales.values.shape[1]

    @property
    def relative_error(self) -> float:
        """Root mean square of what was rounded away over that of the weight."""
        return float(np.sqrt(self.error / self.size)) if self.size else 0.0

    def values(self) -> np.ndarray:
        """The weight as a graph computes with it, float32 ``[outputs, inputs]``."""
        return self.values_of(np.arange(len(self.numbers)))

    def values_of(self, outputs: np.ndarray) -> np.ndarray:
        """The same for some outputs."""
        half = np.float32(0.5 if self.precision == "nvfp4" else 1)
        return half * self.numbers[outputs].astype(np.float32) * np.repeat(self.scales.values[outputs], self.group, 1)


def scale_type(name: str) -> np.dtype:
    """The numpy type of scales in a graph of float32, float16 or bfloat16."""
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def encode(weight: np.ndarray, precision: str, stored: np.dtype, threads: int | None = None) -> Encoded:
    """Round a weight, strip by strip, so that no float32 copy of the whole is made.

    Args:
        weight: ``[outputs, inputs]`` of any floating-point type.
        precision: a key of ``CODES``.
        stored: type of the scales in the graph.
        threads: None: one a core. Any number gives the same.

    Raises:
        CalibrationError: a value is not finite.
    """
    outputs, inputs = weight.shape
    group = group_of(precision, inputs)
    factor = _tensor_factor(weight, stored) if precision == "nvfp4" else np.float32(1)
    scales = np.empty((outputs, inputs // group), np.float32)
    numbers = np.empty((outputs, inputs), COMPACT[precision])

    def strip(rows: slice) -> np.ndarray:
        values = weight[rows].astype(np.float32)
        size = squared_sum(values)
        grouped = values.reshape(len(values), -1, group)
        scales[rows] = chosen = choose_scales(grouped, precision, stored, factor)
        rounded = round_to(grouped, precision, chosen)
        numbers[rows] = compact(rounded, precision).reshape(values.shape)
        rounded *= chosen[..., None]
        rounded -= grouped
        return np.array([squared_sum(rounded), size])

    with ThreadPoolExecutor(threads or os.cpu_count() or 1) as pool:
        error, size = np.sum(list(pool.map(strip, _strips(outputs, inputs))), axis=0)
    return Encoded(precision, numbers, Scales(scales, factor), float(error), float(size))


def squared_sum(values: np.ndarray) -> float:
    """The sum of the squares of float32 values.

    Raises:
        CalibrationError: a value is not finite.
    """
    found = float(np.vdot(values, values))
    if np.isfinite(found):
        return found
    if not np.isfinite(values).all():
        raise CalibrationError("a weight is NaN or infinite: the checkpoint is damaged, or was trained so")
    return float(np.square(values, dtype=np.float64).sum())


def choose_scales(grouped: np.ndarray, precision: str, stored: np.dtype, factor: np.float32) -> np.ndarray:
    """Choose the scale of each group of float32 ``[..., groups, inputs in a group]``; float32 ``[..., groups]``."""
    best, *others = candidates(np.abs(grouped).max(axis=-1), precision, stored, factor)
    if not others:
        return best
    least = _squared_error(grouped, best, precision)
    for tried in others:
        error = _squared_error(grouped, tried, precision)
        better = error < least
        best, least = np.where(better, tried, best), np.where(better, error, least)
    return best


def candidates(top: np.ndarray, precision: str, stored: np.dtype, factor: np.float32) -> list[np.ndarray]:
    """The scales to choose from for groups whose largest magnitudes are ``top``; in 8 bits there is one each."""
    reaches = {"int4": INT4_REACH, "nvfp4": NVFP4_REACH}.get(precision, (LARGEST[precision],))
    return [_as_stored(top / np.float32(reach), precision, stored, factor) for reach in reaches]


def round_to(values: np.ndarray, precision: str, scales: np.ndarray) -> np.ndarray:
    """The nearest numbers of a format to values over their scales, float32, of ``values``' shape ``[..., inputs]``."""
    scaled = values / scales[..., None]
    if precision in INTEGERS:
        return np.clip(np.rint(scaled, out=scaled), *INTEGERS[precision], out=scaled)
    if precision == "fp8":
        np.clip(scaled, -FP8_LARGEST, FP8_LARGEST, out=scaled)
        return FP8_VALUES[FP8_CODES[scaled.astype(np.float16).view(np.uint16)]]
    return np.copysign(NVFP4_VALUES[_nvfp4_index(np.abs(scaled))], scaled)


def _nvfp4_index(magnitudes: np.ndarray) -> np.ndarray:
    magnitudes *= 4
    return NVFP4_NEAREST[np.minimum(magnitudes, 24, out=magnitudes).astype(np.uint8)]


def compact(numbers: np.ndarray, precision: str) -> np.ndarray:
    """Numbers of a format, float32, in one byte each (``COMPACT``)."""
    if precision in INTEGERS:
        return numbers.astype(np.int8)
    if precision == "fp8":
        return FP8_CODES[numbers.astype(np.float16).view(np.uint16)].view(ml_dtypes.float8_e4m3fn)
    return (2 * numbers).astype(np.int8)  # E2M1 has halves


def _squared_error(grouped: np.ndarray, scales: np.ndarray, precision: str) -> np.ndarray:
    """Of each group, for a scale that is tried: float64, since float32 cannot hold the square of every scale."""
    if precision == "nvfp4":
        scaled = np.abs(grouped)
        scaled /= scales[..., None]
        error = NVFP4_VALUES[_nvfp4_index(scaled.copy())]
    else:
        scaled = grouped / scales[..., None]
        error = np.clip(np.rint(scaled), *INTEGERS[precision])
    error -= scaled
    return np.einsum("...i,...i->...", error, error) * np.square(scales, dtype=np.float64)


def _as_stored(scales: np.ndarray, precision: str, stored: np.dtype, factor: np.float32) -> np.ndarray:
    """Round scales as the graph will have them; never to zero, by which codes would be divided."""
    if precision == "nvfp4":
        coded = np.clip(scales / factor, FP8_SMALLEST, FP8_LARGEST).astype(ml_dtypes.float8_e4m3fn)
        return coded.astype(np.float32) * factor
    smallest = np.float32(ml_dtypes.finfo(stored).tiny)
    return np.maximum(scales, smallest).astype(stored).astype(np.float32)


def _tensor_factor(weight: np.ndarray, stored: np.dtype) -> np.float32:
    """The factor of all scales of a tensor: its largest value has the largest scale."""
    top = max(float(np.abs(weight[rows].astype(np.float32)).max(initial=0.0)) for rows in _strips(*weight.shape))
    factor = np.float32(top) / (np.float32(LARGEST["nvfp4"]) * FP8_LARGEST)
    # Below the smallest normal number of the type it would lose precision, and be zero for a tensor of zeros.
    return np.float32(np.maximum(factor, np.float32(ml_dtypes.finfo(stored).tiny)).astype(stored))


def tensor_factor(weight: np.ndarray, precision: str, stored: np.dtype) -> np.float32:
    """The factor of all scales of a weight in a format; 1 for all but NVFP4."""
    return _tensor_factor(weight, stored) if precision == "nvfp4" else np.float32(1)


def _strips(outputs: int, inputs: int) -> Iterator[slice]:
    step = max(1, STRIP // inputs)
    return (slice(first, min(first + step, outputs)) for first in range(0, outputs, step))
