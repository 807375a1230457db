"""The root of every error that a caller can do something about; the one module of this folder that any room imports.

A message names the value, what is allowed, and the next command to type.
"""


class BitDanceError(Exception):
    """Base of the errors of all rooms."""
