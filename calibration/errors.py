"""The error of this room."""

from bitdance_edge.errors import BitDanceError


class CalibrationError(BitDanceError):
    """A calibration that cannot be done as asked, or inputs that no scale can be chosen for."""
