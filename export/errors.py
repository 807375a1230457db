"""The one error of this room."""

from bitdance_edge.errors import BitDanceError


class ExportError(BitDanceError):
    """An export that is not possible, or whose graphs do not compute what PyTorch does."""
