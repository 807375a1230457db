"""Errors of the server: those that keep it from starting, and those reported to a client.

A client gets an HTTP status and ``{"error": {"message", "type", "param", "code"}}``, as from OpenAI; once a stream has
begun, the same object is its last event. Clients of the web UI's API find the message under ``detail`` too.
"""

import json
from collections.abc import Mapping
from typing import Any

from bitdance_edge.errors import BitDanceError

WEB_UI = "/sdapi/"
INVALID, SERVER = "invalid_request_error", "server_error"
LONGEST_MESSAGE, LONGEST_NAME = 1500, 100  # bytes of their JSON, so that no error answer is over 2 KB


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

    def body(self, path: str = "") -> dict[str, Any]:
        """The JSON that the client of a path gets."""
        web_ui = path.startswith(WEB_UI)
        message = shortened(self.message, LONGEST_MESSAGE // 2 if web_ui else LONGEST_MESSAGE)
        error = {
            "message": message,
            "type": self.kind,
            "param": None if self.param is None else shortened(self.param, LONGEST_NAME),
            "code": self.code,
        }
        return {"error": error, "detail": message} if web_ui else {"error": error}


def shortened(text: str, most: int) -> str:
    """Cut a text whose JSON is over ``most`` bytes, and replace what UTF-8 cannot encode."""
    text = text[:most].encode("utf-8", "replace").decode() + ("…" if len(text) > most else "")
    while (excess := len(json.dumps(text)) - most) > 0:
        text = text[: max(0, len(text) - 1 - max(1, excess // 12))] + "…"  # a character takes up to 12 bytes
    return text


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
