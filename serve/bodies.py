"""Request bodies: read whole before the application sees them, within limits of size, time and memory in total."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from starlette.types import Message, Receive, Scope

from bitdance_edge.serve.errors import ApiError, unavailable
from bitdance_edge.serve.settings import BODY_BUDGET, SMALL_BODY

# Routes that take pictures, and so bodies of up to ``max_body`` bytes; all others take SMALL_BODY.
WITH_PICTURES = (
    "/v1/tokens",
    "/v1/jobs",
    "/v1/images/edits",
    "/v1/images/variations",
    "/sdapi/v1/img2img",
)
BODY_SECONDS = 30.0  # for a whole request body to arrive
DISCARD_SECONDS, MOST_DISCARDED = 5.0, 64 * 2**20
PIECE = 256 * 2**10  # bytes of a body that are held, and freed, together
PORTION = 16 * 2**10  # that the application gets at once: parsing 256 KiB of some forms takes 0.1 s and more


class Body:
    """The bytes of one body, in pieces of PIECE: many blocks that grow side by side can take twice their size."""

    def __init__(self) -> None:
        self.pieces: deque[bytearray] = deque()
        self.size = 0

    def add(self, received: bytes) -> None:
        """Append what has arrived."""
        left = memoryview(received)
        self.size += len(left)
        while left:
            if not self.pieces or len(self.pieces[-1]) == PIECE:
                self.pieces.append(bytearray())
            room = PIECE - len(self.pieces[-1])
            self.pieces[-1] += left[:room]
            left = left[room:]

    def clear(self) -> None:
        """Free the bytes."""
        self.pieces.clear()


class Bodies:
    """The bodies in flight. The first SMALL_BODY bytes of each are always taken; the connections bound their number."""

    def __init__(self, max_body: int) -> None:
        self.max_body = max_body
        self.held = 0  # bytes beyond SMALL_BODY of each body

    def limit(self, path: str) -> int:
        """The largest body of a route, in bytes."""
        return self.max_body if path in WITH_PICTURES else min(self.max_body, SMALL_BODY)

    def check_declared(self, scope: Scope, length: bytes) -> None:
        """Raises: ApiError 413: the declared length is over the limit."""
        most = self.limit(scope["path"])
        if length.isdigit() and (len(length) > 18 or int(length) > most):
            raise too_large(most)

    @asynccontextmanager
    async def read(self, scope: Scope, receive: Receive) -> AsyncIterator[Body | None]:
        """Read a body, which counts as in flight within the context; None: the client left before its end.

        Raises:
            ApiError: 413 too large, 408 too slow, 503 the bodies in flight would exceed their budget.
        """
        most, body, counted = self.limit(scope["path"]), Body(), 0
        complete = False
        try:
            async with _deadline():
                while not complete and (message := await receive())["type"] != "http.disconnect":
                    body.add(message.get("body", b""))
                    complete = not message.get("more_body", False)
                    more = max(0, body.size - SMALL_BODY) - counted
                    if body.size > most or self.held + more > BODY_BUDGET:
                        refusal = too_large(most) if body.size > most else _no_room()
                        body.clear()
                        self.held, counted = self.held - counted, 0  # room for others while the rest is discarded
                        if not complete:
                            await discard(receive)
                        raise refusal
                    counted, self.held = counted + more, self.held + more
            yield body if complete else None
        finally:
            self.held -= counted


@asynccontextmanager
async def _deadline() -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(BODY_SECONDS):
            yield
    except TimeoutError:
        message = f"the request body did not arrive within {BODY_SECONDS:g} s"
        raise ApiError(408, "request_timeout", message) from None


async def discard(receive: Receive) -> None:
    """Read the rest of a refused body, within bounds: a client still sending would see a reset, not the answer."""
    left = MOST_DISCARDED
    with suppress(TimeoutError):
        async with asyncio.timeout(DISCARD_SECONDS):
            while left > 0:
                message = await receive()
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    return
                left -= len(message.get("body", b""))


def replayed(body: Body, receive: Receive) -> Receive:
    """A receive function that gives the body in portions first, and frees each piece, then the messages after it."""
    place, begun, ended = 0, False, False

    async def replay() -> Message:
        nonlocal place, begun, ended
        if ended:
            return await receive()
        if begun:
            await asyncio.sleep(0)  # others may run between two portions
        begun, portion = True, b""
        if body.pieces:
            portion = bytes(body.pieces[0][place : place + PORTION])
            place += PORTION
            if place >= len(body.pieces[0]):
                body.pieces.popleft()
                place = 0
        ended = not body.pieces
        return {"type": "http.request", "body": portion, "more_body": not ended}

    return replay


def too_large(most: int) -> ApiError:
    """413: over the limit of the route."""
    return ApiError(413, "request_too_large", f"the request is larger than {most:,} bytes, the limit of this route")


def _no_room() -> ApiError:
    message = f"the requests that are being sent already hold {BODY_BUDGET // 2**20} MiB; try again"
    return unavailable("busy", message)
