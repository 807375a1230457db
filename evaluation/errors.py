"""The error of this room."""

from bitdance_edge.errors import BitDanceError


class EvaluationError(BitDanceError):
    """Images, a network or statistics that nothing can be measured with."""
