"""The root of every error that a caller can do something about.

A message names the value, what is allowed, and the next command to type.
"""

from bitdance_edge.installation import as_typed


class BitDanceError(Exception):
    """Base of the errors of all rooms; as text, commands in its message are shown as they work from here."""

    def __str__(self) -> str:
        return as_typed(super().__str__())


class OutputBusyError(BitDanceError):
    """An output that another process is writing."""


def plain(error: BaseException) -> str:
    """An error's message for readers elsewhere, such as clients of a server: commands without paths of this machine."""
    return super(BitDanceError, error).__str__() if isinstance(error, BitDanceError) else str(error)
