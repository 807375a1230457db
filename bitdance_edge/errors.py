"""The root of every error that a caller can do something about; the one module of this folder that any room imports.

A message names the value, what is allowed, and the next command to type.
"""

from bitdance_edge.installation import as_typed


class BitDanceError(Exception):
    """Base of the errors of all rooms; as text, commands in its message are shown as they work from here."""

    def __str__(self) -> str:
        return as_typed(super().__str__())
