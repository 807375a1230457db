"""uvicorn's HTTP/1.1 protocol with the bounds that it lacks: on connections, on slow headers and on stalled readers.

docs/serve.md says why uvicorn, and what was measured beside granian.
"""

import asyncio
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

HEADER_SECONDS = 10.0  # from the first byte of a request, or from connecting, to the end of its headers
STALL_SECONDS = 30.0  # in which a client must read LEAST_READ bytes of an answer that waits for it
LEAST_READ = 64 * 2**10
FULL = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class BoundedProtocol(H11Protocol):
    """One connection. ``most_connections`` is set on a subclass for each server."""

    most_connections = 256

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._header_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None

    @property
    def idle(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        if len(self.connections) >= self.most_connections and not self._make_room():
            transport.write(FULL)
            transport.close()
            return
        super().connection_made(transport)
        self._await_headers()

    def _make_room(self) -> bool:
        """Close a connection without a request, so that slow ones cannot keep others out."""
        for other in self.connections:
            if isinstance(other, BoundedProtocol) and other.idle:
                other.transport.abort()
                self.connections.discard(other)
                return True
        return False

    def data_received(self, data: bytes) -> None:
        if self.transport is None:  # refused in connection_made
            return
        super().data_received(data)
        if self.idle and not self.transport.is_closing():
            self._await_headers()

    def handle_events(self) -> None:
        super().handle_events()
        if not self.idle:
            self._header_timer = _stopped(self._header_timer)

    def connection_lost(self, exc: Exception | None) -> None:
        self._header_timer, self._stall_timer = _stopped(self._header_timer), _stopped(self._stall_timer)
        if self.transport is not None:
            super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stall_timer = _stopped(self._stall_timer)
        self._watch_reader()

    def resume_writing(self) -> None:
        self._stall_timer = _stopped(self._stall_timer)
        super().resume_writing()

    def _await_headers(self) -> None:
        """Give the client some time to send the headers of a request; further bytes do not extend it."""
        if self._header_timer is None:
            self._header_timer = self.loop.call_later(HEADER_SECONDS, self._abort_if_idle)

    def _abort_if_idle(self) -> None:
        self._header_timer = None
        if self.idle:
            self.transport.abort()

    def _watch_reader(self) -> None:
        waiting = self.transport.get_write_buffer_size()
        self._stall_timer = self.loop.call_later(STALL_SECONDS, self._abort_if_stalled, waiting)

    def _abort_if_stalled(self, waiting: int) -> None:
        if self.transport.get_write_buffer_size() > waiting - LEAST_READ:
            self.transport.abort()
        else:
            self._watch_reader()


def _stopped(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
