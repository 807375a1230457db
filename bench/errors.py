"""Errors of the measurements."""

from bitdance_edge.errors import BitDanceError


class BenchError(BitDanceError):
    """Nothing can be compared, or what was compared is not the same image."""
