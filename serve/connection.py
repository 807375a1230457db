"""Responses that are cancelled when their client disconnects: server-sent events, and awaited results.

Server-sent events as in the HTML standard, section 9.2 (html.spec.whatwg.org/multipage/server-sent-events.html).
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from bitdance_edge.serve.errors import SERVER, ApiError

Result = TypeVar("Result")
NamedEvent = tuple[str, dict[str, Any]]
KEEP_ALIVE = b": keep-alive\n\n"


class ClientLeft(Exception):
    """The client has disconnected before its response was complete."""


async def until_client_leaves(request: Request, result: Coroutine[Any, Any, Result]) -> Result:
    """Await the result, and cancel it if the client disconnects first. Raises: ClientLeft."""
    working = asyncio.create_task(result)
    leaving = asyncio.create_task(_disconnected(request.receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientLeft
        return working.result()
    finally:
        await _end(working, leaving)


class EventStream(Response):
    """Sends (event, data) pairs as they come, and a comment after ``keep_alive`` seconds without one.

    An error becomes the last event. The iteration is cancelled when the client disconnects.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[NamedEvent, None], keep_alive: float) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self.events, self.keep_alive = events, keep_alive

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        sending = asyncio.create_task(self._send(send))
        leaving = asyncio.create_task(_disconnected(receive))
        try:
            await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        finally:
            await _end(sending, leaving)

    async def _send(self, send: Send) -> None:
        async def chunk(body: bytes, more: bool = True) -> None:
            try:
                await send({"type": "http.response.body", "body": body, "more_body": more})
            except OSError as error:
                raise ClientLeft from error

        events = aiter(self.events)
        following = asyncio.ensure_future(anext(events))
        try:
            while True:
                await asyncio.wait({following}, timeout=self.keep_alive)
                if not following.done():
                    await chunk(KEEP_ALIVE)
                    continue
                name, data = following.result()
                await chunk(_frame(name, data))
                following = asyncio.ensure_future(anext(events))
        except StopAsyncIteration:
            pass
        except ApiError as error:
            await chunk(_frame("error", {"type": "error", **error.body()}))
        except ClientLeft:
            return
        except Exception:
            broken = ApiError(500, "internal_error", "the server failed; see its log", kind=SERVER)
            await chunk(_frame("error", {"type": "error", **broken.body()}))
            raise
        finally:
            await _end(following)
            with suppress(ApiError):
                await self.events.aclose()
        await chunk(b"", more=False)


def _frame(event: str, data: dict[str, Any]) -> bytes:
    return f"event: {event}\ndata: {json.dumps(data)}\n\n".encode()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _end(*tasks: "asyncio.Future[Any]") -> None:
    """Cancel the tasks that are not done, and wait until they have cleaned up."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
