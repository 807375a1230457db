"""Checks before every request: Host, bearer token, size of the body and the time it takes; and security headers.

CORS is off: no other site may read a response. A server that listens on this machine only also refuses other
Host names, with which a site could reach it by DNS rebinding.
"""

import asyncio
import hmac
from collections.abc import Iterable
from contextlib import suppress

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bitdance_edge.serve.errors import ApiError
from bitdance_edge.serve.settings import ServeSettings

PUBLIC, PUBLIC_FOLDER = ("/", "/health", "/openapi.json"), "/page/"  # need no token: they show nothing of any user
LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")
BODY_SECONDS = 30.0  # for a whole request body to arrive
DISCARD_SECONDS, MOST_DISCARDED = 5.0, 64 * 2**20
SECURITY = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data: blob:; frame-ancestors 'none'; "
    "base-uri 'none'; form-action 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


class Guard:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, settings: ServeSettings) -> None:
        self.app, self.settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                secure = [(name.lower().encode(), value.encode()) for name, value in SECURITY.items()]
                message["headers"] = [*message["headers"], *secure]
            await send(message)

        try:
            try:
                self._check_headers(scope)
            except ApiError:
                await _discard(receive)
                raise
            body = await self._body(receive)
        except ApiError as error:
            refused = JSONResponse(error.body(), error.status, {**error.headers, "Connection": "close"})
            await refused(scope, receive, send_guarded)
            return
        if body is None:  # the client disconnected while it was sending
            return
        await self.app(scope, _replayed(body, receive), send_guarded)

    def _check_headers(self, scope: Scope) -> None:
        """Refuse what the headers alone show to be wrong."""
        self._check_host(scope)
        self._check_token(scope)
        declared = _header(scope, b"content-length")
        if declared.isdigit() and int(declared) > self.settings.max_body:
            raise _too_large(self.settings.max_body)

    def _check_host(self, scope: Scope) -> None:
        host = _header(scope, b"host").decode("latin-1")
        name = host if host.endswith("]") else host.rsplit(":", 1)[0]
        if self.settings.local_only and name.lower() not in LOCAL_NAMES:
            message = f"Host is {host!r}; this server accepts {', '.join(LOCAL_NAMES)} only (see --host)"
            raise ApiError(421, "invalid_host", message)

    def _check_token(self, scope: Scope) -> None:
        path: str = scope["path"]
        if self.settings.token is None or path in PUBLIC or path.startswith(PUBLIC_FOLDER):
            return
        scheme, _, given = _header(scope, b"authorization").partition(b" ")
        # In constant time, so that timing does not tell how much of a guess is right.
        right = hmac.compare_digest(given.strip(), self.settings.token.encode())
        if scheme.lower() != b"bearer" or not right:
            message = "the bearer token is missing or wrong; send Authorization: Bearer TOKEN"
            raise ApiError(401, "invalid_api_key", message, headers={"WWW-Authenticate": "Bearer"})

    async def _body(self, receive: Receive) -> bytes | None:
        """The whole body; None if the client disconnected before its end."""
        most = self.settings.max_body
        parts, size = [], 0
        try:
            async with asyncio.timeout(BODY_SECONDS):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    more = message.get("more_body", False)
                    if size > most:
                        if more:
                            await _discard(receive)
                        raise _too_large(most)
                    if not more:
                        return b"".join(parts)
        except TimeoutError:
            message = f"the request body did not arrive within {BODY_SECONDS:g} s"
            raise ApiError(408, "request_timeout", message) from None


async def _discard(receive: Receive) -> None:
    """Read the rest of a refused body, within bounds: a client still sending would see a reset, not the answer."""
    left = MOST_DISCARDED
    with suppress(TimeoutError):
        async with asyncio.timeout(DISCARD_SECONDS):
            while left > 0:
                message = await receive()
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    return
                left -= len(message.get("body", b""))


def _replayed(body: bytes, receive: Receive) -> Receive:
    """A receive function that gives the body first, then the messages after it."""
    messages: Iterable[Message] = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def replay() -> Message:
        for message in messages:
            return message
        return await receive()

    return replay


def _header(scope: Scope, name: bytes) -> bytes:
    return next((value for key, value in scope["headers"] if key == name), b"")


def _too_large(most: int) -> ApiError:
    return ApiError(413, "request_too_large", f"the request is larger than {most} bytes, the limit of this server")
