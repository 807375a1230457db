"""Errors of the runtime. Each message names the value, what is allowed, and the next thing to try."""

from bitdance_edge.errors import BitDanceError


class BundleError(BitDanceError):
    """A bundle that is missing, altered, incomplete or of another format."""


class RequestError(BitDanceError):
    """A request that this bundle, or this machine, cannot serve."""


class PromptTooLongError(RequestError):
    """A prompt with more tokens than the bundle takes."""


class HubError(BitDanceError):
    """A name on the Hub that cannot be downloaded from or uploaded to."""


class BackendError(BitDanceError):
    """No backend that can run this bundle here."""


class StorageError(BitDanceError):
    """A file or folder that cannot be written: the disk is full, or permission is missing."""


class OutOfMemoryError(BackendError):
    """A device that has less memory left than the work takes."""


class BuildError(BitDanceError):
    """A build that cannot be made, is missing, or belongs to another bundle, library or device."""


class Cancelled(BitDanceError):
    """The caller cancelled a request between two patches, or a build."""
