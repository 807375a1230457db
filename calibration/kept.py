"""What earlier calibrations measured and kept: read again only where it is whole."""

import math
from pathlib import Path

import numpy as np

from bitdance_edge.calibration.errors import CalibrationError
from bitdance_edge.runtime.bundle.json_file import read_json


def kept_array(path: Path, trailing: tuple[int, ...] = (), length: int | None = None) -> np.ndarray:
    """Read numbers ``[N, *trailing]``.

    Args:
        length: N; None: any.

    Raises:
        CalibrationError: the file is damaged, or holds something else.
    """
    try:
        values = np.load(path, allow_pickle=False, mmap_mode="r")
    except Exception as error:  # of a damaged file numpy raises any
        raise _damaged(path, str(error).splitlines()[0] if str(error) else type(error).__name__) from None
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "iuf" or values.shape[1:] != trailing:
        raise _damaged(path, "it holds something else")
    if values.ndim == 0 or (length is not None and len(values) != length) or not np.isfinite(values).all():
        raise _damaged(path, "it holds something else")
    return np.array(values)


def kept_losses(path: Path) -> dict[str, tuple[float, float | None]]:
    """Read each layer's error and share of flipped bits (None: of the decoder); nothing where there is no file.

    Raises:
        CalibrationError: the file is damaged.
    """
    if not path.is_file():
        return {}
    try:
        found, _ = read_json(path)
        whole = isinstance(found, dict) and all(map(_is_loss, found.values()))
    except (ValueError, OSError) as error:
        raise _damaged(path, str(error).splitlines()[0]) from None
    if not whole:
        raise _damaged(path, "it holds something else")
    return {layer: tuple(loss) for layer, loss in found.items()}


def damaged_run(folder: Path, reason: str) -> CalibrationError:
    """An error that says why a run that was stopped cannot go on in its folder, and what helps."""
    return CalibrationError(f"{reason}; delete the folder {folder} and run the same command again")


def _is_loss(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and _is_number(value[0])
        and (value[1] is None or _is_number(value[1]))
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _damaged(path: Path, reason: str) -> CalibrationError:
    return CalibrationError(f"{path} cannot be read ({reason}); delete it and run the same command again")
