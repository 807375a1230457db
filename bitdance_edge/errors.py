"""The root of every error that a caller can do something about.

A message names the value, what is allowed, and the next command to type.
"""


class BitDanceError(Exception):
    """Base of the errors of all rooms."""


class OutputBusyError(BitDanceError):
    """An output that another process is writing."""
