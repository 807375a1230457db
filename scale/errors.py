"""The error of this room."""

from bitdance_edge.errors import BitDanceError


class ScaleError(BitDanceError):
    """A job that cannot be planned, a folder that is another job's, or shards that could not be made."""
