"""The error of this room."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bitdance_edge.errors import BitDanceError


class CalibrationError(BitDanceError):
    """A calibration that cannot be done as asked, or inputs that no scale can be chosen for."""


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Raise CalibrationError where the code inside cannot write to ``folder``: no room, no permission, read-only."""
    try:
        yield
    except OSError as error:
        path = error.filename or folder
        raise CalibrationError(
            f"cannot write {path}: {error.strerror or error}; give another folder or disk with --out"
        ) from error
