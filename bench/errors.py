"""Errors of the measurements."""

from bitdance_edge.errors import BitDanceError


class BenchError(BitDanceError):
    """Nothing can be compared, or the images differ."""
