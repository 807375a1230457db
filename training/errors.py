"""The one error of this room; its message names the value, what is allowed and what to do."""


class TrainingError(ValueError):
    """Data, a recipe or a run that cannot be used."""
