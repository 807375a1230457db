"""The error of this room; its message names the value, what is allowed and what to do."""

from bitdance_edge.errors import BitDanceError


class ModelError(BitDanceError):
    """A configuration or checkpoint that cannot be used."""
