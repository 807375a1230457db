"""GPTQ: what rounding one input of a layer costs is made up for by the inputs that are rounded after it.

E. Frantar et al., arXiv 2210.17323: with the products of the layer's inputs ``H = sum x x^T``, the error of each
rounded input, divided by its entry of the Cholesky factor of ``H^-1``, is subtracted from the inputs that follow.
Scales are chosen group by group, on weights that have taken up the errors before them: of several, with clipping, each
output gets the one with which the least is lost.

The inputs that vary most are rounded first, while many are left to make up for them. Groups, whose scale the graph
stores, stay whole: they are sorted, and the inputs inside each.
"""

from dataclasses import dataclass

import numpy as np
from scipy.linalg import get_lapack_funcs

from bitdance_edge.calibration.errors import CalibrationError
from bitdance_edge.calibration.weights import (
    COMPACT,
    Encoded,
    Scales,
    candidates,
    compact,
    group_of,
    round_to,
    squared_sum,
    tensor_factor,
)

DAMPING = 0.003  # of the mean of the diagonal, added to it: few samples leave H singular
EXACT_UP_TO = 4096  # inputs up to which the factor is computed in float64


def encode_with_feedback(weight: np.ndarray, products: np.ndarray, precision: str, stored: np.dtype) -> Encoded:
    """Round a weight with error feedback.

    Args:
        weight: ``[outputs, inputs]`` of any floating-point type.
        products: float32 ``[inputs, inputs]``, sums of the products of what entered the layer; not changed.
        precision, stored: as for ``weights.encode``.

    Raises:
        CalibrationError: a value is not finite.
    """
    outputs, inputs = weight.shape
    group = group_of(precision, inputs)
    order = Order.of(np.einsum("ii->i", products), group)
    rows = np.array(weight.T[order.inputs], np.float32, order="C")  # [inputs, outputs]: what is rounded lies together
    size = squared_sum(rows)
    factor = tensor_factor(weight, precision, stored)
    scales = np.empty((outputs, inputs // group), np.float32)
    numbers = np.empty((outputs, inputs), COMPACT[precision])
    upper = _inverse_factor(products, order.inputs)
    for first, place in zip(range(0, inputs, group), order.groups, strict=True):
        last = first + group
        corner = upper[first:last, first:last]
        scales[:, place] = _best_scales(rows[first:last], corner, precision, stored, factor)
        rounded, errors = _fed_back(rows[first:last], corner, precision, scales[:, place])
        numbers[:, order.inputs[first:last]] = compact(rounded.T, precision)
        rows[last:] -= upper[first:last, last:].T @ errors
    made = Encoded(precision, numbers, Scales(scales, factor), 0.0, size)
    lost = 0.0
    for part in np.array_split(np.arange(outputs), max(1, outputs * inputs >> 22)):
        difference = weight[part].astype(np.float32) - made.values_of(part)
        lost += squared_sum(difference)
    return Encoded(precision, numbers, Scales(scales, factor), lost, size)


@dataclass(frozen=True)
class Order:
    """The order in which inputs are rounded: ``groups`` whole, one after the other, and ``inputs`` sorted in each."""

    groups: np.ndarray
    inputs: np.ndarray

    @classmethod
    def of(cls, energy: np.ndarray, group: int) -> "Order":
        """By the energy of each input ``[inputs]``, the largest first; of equals the first."""
        grouped = energy.reshape(-1, group)
        groups = np.argsort(-grouped.mean(axis=1), kind="stable")
        inside = np.argsort(-grouped[groups], axis=1, kind="stable")
        return cls(groups, (groups[:, None] * group + inside).ravel())


def _best_scales(
    rows: np.ndarray, upper: np.ndarray, precision: str, stored: np.dtype, factor: np.float32
) -> np.ndarray:
    """Choose the scale of each output for one group ``[inputs, outputs]``: that with the least errors, fed back."""
    tried = candidates(np.abs(rows).max(axis=0), precision, stored, factor)
    losses = [np.square(_fed_back(rows, upper, precision, scales)[1]).sum(axis=0) for scales in tried]
    return np.choose(np.argmin(losses, axis=0), tried)


def _fed_back(rows: np.ndarray, upper: np.ndarray, precision: str, scales: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Round one group, input by input; numbers and errors, each ``[inputs, outputs]``, the latter over ``upper``."""
    left, rounded, errors = rows.copy(), np.empty_like(rows), np.empty_like(rows)
    for i in range(len(left)):
        rounded[i] = round_to(left[i][:, None], precision, scales)[:, 0]
        errors[i] = (left[i] - rounded[i] * scales) / upper[i, i]
        left[i + 1 :] -= upper[i, i + 1 :, None] * errors[i]
    return rounded, errors


def _inverse_factor(products: np.ndarray, order: np.ndarray) -> np.ndarray:
    """The upper Cholesky factor of the inverse of the damped products, in this order of the inputs."""
    number = np.float64 if len(products) <= EXACT_UP_TO else np.float32
    damped = np.empty(products.shape, number, order="F")
    for place, column in enumerate(order):  # no other copy: the products of a wide layer take a gigabyte
        damped[:, place] = products[column, order]
    diagonal = np.einsum("ii->i", damped)
    diagonal[diagonal == 0] = 1.0  # an input that was always zero: any weight does
    diagonal += DAMPING * diagonal.mean()
    factorise, invert = get_lapack_funcs(("potrf", "potri"), dtype=number)
    factor, failed = factorise(damped, lower=1, overwrite_a=1, clean=1)
    if not failed:
        inverse, failed = invert(factor, lower=1, overwrite_c=1)
        if not failed:
            # The lower triangle of the inverse, as the upper one of its transpose.
            upper, failed = factorise(inverse.T, lower=0, overwrite_a=1, clean=1)
            if not failed:
                return upper.astype(np.float32, copy=False)
    raise CalibrationError(
        "the inputs of a layer are too much alike for error feedback: record more images (--images), or quantise "
        "without it (--no-feedback)"
    )
