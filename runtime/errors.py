"""Errors of the runtime. Each message names the value, what is allowed, and the next thing to try."""

from bitdance_edge.errors import BitDanceError


class BundleError(BitDanceError):
    """A bundle that is missing, altered, incomplete or of another format."""


class RequestError(BitDanceError):
    """A request that this bundle cannot serve."""


class PromptTooLongError(RequestError):
    """A prompt of more tokens than the bundle takes."""


class BackendError(BitDanceError):
    """No backend that can run this bundle here."""


class StorageError(BitDanceError):
    """A file or folder that cannot be written: the disk is full, or permission is missing."""


class OutOfMemoryError(BackendError):
    """A device that has less memory left than the work takes."""


class BuildError(BitDanceError):
    """A build that cannot be made, is missing, or is of another bundle, library or device."""


class Cancelled(BitDanceError):
    """The caller cancelled a request between two patches, or a build."""
