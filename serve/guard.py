"""Checks before every request: Host, token, size of the body and the time it takes; HEAD, OPTIONS; security headers.

Unless ``--cors`` names a site, no other site may read a response. A server that listens on this machine only also
refuses other Host names, with which a site could reach it by DNS rebinding.
"""

import asyncio
import base64
import binascii
import hmac
from collections.abc import Callable

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bitdance_edge.serve.bodies import Bodies, discard, replayed
from bitdance_edge.serve.errors import ApiError
from bitdance_edge.serve.settings import LOCAL_NAMES, ServeSettings

# These need no token: they show nothing of any user.
PUBLIC, PUBLIC_FOLDER = ("/", "/health", "/healthz", "/readyz", "/openapi.json"), "/page/"
SECURITY = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data: blob:; frame-ancestors 'none'; "
    "base-uri 'none'; form-action 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


class Guard:
    """ASGI middleware around the whole application; ``methods`` gives those that a path has."""

    def __init__(self, app: ASGIApp, settings: ServeSettings, methods: Callable[[Scope], set[str]]) -> None:
        self.app, self.settings, self.methods = app, settings, methods
        self.bodies = Bodies(settings.max_body)

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
                await discard(receive)
                raise
            async with self.bodies.read(scope, receive) as body:
                if body is not None:  # else the client disconnected while it was sending
                    await self._answer(scope, replayed(body, receive), send_guarded)
        except ApiError as error:
            refused = JSONResponse(error.body(scope["path"]), error.status, {**error.headers, "Connection": "close"})
            await refused(scope, receive, send_guarded)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "OPTIONS":
            await self._options(scope, send)
        elif scope["method"] == "HEAD":
            await self._head(scope, send)
        else:
            await self.app(scope, receive, send)

    async def _head(self, scope: Scope, send: Send) -> None:
        """Answer as GET does, without the body. The client counts as gone once it has the headers, so streams end."""
        started, complete = asyncio.Event(), False

        async def receive() -> Message:
            await started.wait()
            return {"type": "http.disconnect"}

        async def send_headers(message: Message) -> None:
            nonlocal complete
            if message["type"] == "http.response.start":
                await send(message)
                started.set()
            elif not complete:
                complete = not message.get("more_body", False)
                await send({**message, "body": b""})

        await self.app({**scope, "method": "GET"}, receive, send_headers)
        if not complete:
            await send({"type": "http.response.body", "body": b""})

    async def _options(self, scope: Scope, send: Send) -> None:
        methods = self.methods(scope)
        headers = [(b"allow", ", ".join(sorted(methods)).encode())] if methods else [(b"content-length", b"0")]
        await send({"type": "http.response.start", "status": 204 if methods else 404, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

    def _check_headers(self, scope: Scope) -> None:
        """Refuse what the headers alone show to be wrong."""
        self._check_host(scope)
        self._check_token(scope)
        self.bodies.check_declared(scope, _header(scope, b"content-length"))

    def _check_host(self, scope: Scope) -> None:
        host = _header(scope, b"host").decode("latin-1")
        if not self.settings.accepts_host(host if host.endswith("]") else host.rsplit(":", 1)[0]):
            accepted = ", ".join((*LOCAL_NAMES, *self.settings.hosts))
            message = f"Host is {host[:200]!r}; this server accepts {accepted} only (see --allow-host)"
            raise ApiError(421, "invalid_host", message)

    def _check_token(self, scope: Scope) -> None:
        path: str = scope["path"]
        if self.settings.token is None or path in PUBLIC or path.startswith(PUBLIC_FOLDER):
            return
        # In constant time, so that timing does not tell how much of a guess is right.
        if not hmac.compare_digest(_given_token(scope), self.settings.token.encode()):
            message = "the bearer token is missing or wrong; send Authorization: Bearer TOKEN"
            raise ApiError(401, "invalid_api_key", message, headers={"WWW-Authenticate": "Bearer"})


def _given_token(scope: Scope) -> bytes:
    """The bearer token, or the password of basic authentication, which is all that clients of /sdapi can send."""
    scheme, _, given = _header(scope, b"authorization").partition(b" ")
    if scheme.lower() == b"bearer":
        return given.strip()
    if scheme.lower() == b"basic":
        try:
            return base64.b64decode(given.strip(), validate=True).partition(b":")[2]
        except binascii.Error:
            return b""
    return b""


def _header(scope: Scope, name: bytes) -> bytes:
    return next((value for key, value in scope["headers"] if key == name), b"")
