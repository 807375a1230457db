"""Errors of the server: those that keep it from starting, and those reported to a client.

A client gets an HTTP status and ``{"error": {"message", "type", "param", "code"}}``, as from OpenAI; once a stream has
begun, the same object is its last event.
"""

from collections.abc import Mapping
from typing import Any

from bitdance_edge.errors import BitDanceError

INVALID, SERVER = "invalid_request_error", "server_error"


class ServeError(BitDanceError):
    """A server or a worker that cannot start."""


class ApiError(BitDanceError):
    """A request that is wrong, or that the server cannot serve now."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        kind: str = INVALID,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.param, self.kind = status, code, message, param, kind
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The JSON that the client gets."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


def queue_full(waiting: int, seconds: int) -> ApiError:
    """429: retry after ``seconds``."""
    message = f"the queue is full with {waiting} requests; try again in {seconds} s"
    return ApiError(429, "queue_full", message, kind="rate_limit_error", headers={"Retry-After": str(seconds)})


def unavailable(code: str, message: str) -> ApiError:
    """503: the same request may succeed if it is sent again."""
    return ApiError(503, code, message, kind=SERVER, headers={"Retry-After": "1"})


def insufficient_memory(message: str) -> ApiError:
    return ApiError(507, "insufficient_memory", message, kind=SERVER)


def cancelled() -> ApiError:
    return ApiError(409, "cancelled", "the request was cancelled")
