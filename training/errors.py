"""The error of this room; its message names the value, what is allowed and what to do."""

from bitdance_edge.errors import BitDanceError


class TrainingError(BitDanceError):
    """Data, a recipe or a run that cannot be used."""
