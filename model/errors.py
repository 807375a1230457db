"""The one error of this room; its message names the value, what is allowed and what to do."""


class ModelError(ValueError):
    """A configuration or checkpoint that cannot be used."""
