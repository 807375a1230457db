"""The HTTP server of a service: uvicorn, with its signals passed on."""

import asyncio
import errno
import math
import os
import signal
import socket
import sys
from contextlib import suppress
from types import FrameType

import uvicorn

from bitdance_edge.serve.app import create_app
from bitdance_edge.serve.protocol import BoundedProtocol
from bitdance_edge.serve.service import Service

# Seconds that an idle connection stays open: longer than in clients, so that none is closed just as it is used again.
KEEP_ALIVE = 75


class Server(uvicorn.Server):
    """Tells the service at once when a signal asks to stop, and stops if the service cannot start."""

    def __init__(self, service: Service) -> None:
        grace = math.ceil(service.settings.grace) + 5
        settings = {"most_connections": service.settings.max_connections}
        config = uvicorn.Config(
            create_app(service),
            http=type("Protocol", (BoundedProtocol,), settings),
            ws="none",
            log_config=None,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE,
            timeout_graceful_shutdown=grace,
        )
        super().__init__(config)
        self.service = service
        service.on_failure = self._end

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        with suppress(RuntimeError):  # no event loop runs, before the start or after the end
            asyncio.get_running_loop().call_soon_threadsafe(self.service.begin_stop)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if hasattr(signal, "SIGHUP"):
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._hang_up)

    def _hang_up(self) -> None:
        """Reload the bundles, or stop if the signal means that the terminal was closed."""
        try:
            os.tcgetpgrp(sys.stdin.fileno())
        except OSError as error:
            if error.errno == errno.EIO:  # it was a terminal, and is gone
                self.handle_exit(signal.SIGHUP, None)
                return
        except ValueError:  # standard input is closed
            pass
        self.service.begin_reload()

    def _end(self) -> None:
        self.should_exit = True
