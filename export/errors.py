"""The one error of this room."""


class ExportError(RuntimeError):
    """An export that cannot be done, or whose graphs do not compute what PyTorch does."""
