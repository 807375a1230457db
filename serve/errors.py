"""Errors of the server: those that keep it from starting, and those that a client is told.

A client sees ``{"error": {"message", "type", "param", "code"}}``, as from OpenAI, with an HTTP status; once a stream
has begun the same object comes as its last event.
"""

from collections.abc import Mapping
from typing import Any

from bitdance_edge.errors import BitDanceError

INVALID, SERVER = "invalid_request_error", "server_error"


class ServeError(BitDanceError):
    """A server that cannot start."""


class ApiError(Exception):
    """What a client did wrong, or what the server cannot do for it now."""

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
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


def queue_full(waiting: int, seconds: int) -> ApiError:
    message = f"{waiting} requests are waiting, as many as this server holds; try again in {seconds} s"
    return ApiError(429, "queue_full", message, kind="rate_limit_error", headers={"Retry-After": str(seconds)})


def unavailable(code: str, message: str) -> ApiError:
    """503: the same request may succeed a moment later."""
    return ApiError(503, code, message, kind=SERVER, headers={"Retry-After": "1"})


def insufficient_memory(message: str) -> ApiError:
    return ApiError(507, "insufficient_memory", message, kind=SERVER)


def cancelled() -> ApiError:
    return ApiError(409, "cancelled", "the request was cancelled")
