"""The HTTP server of a service: uvicorn, with its signals passed on."""

import asyncio
import math
from contextlib import suppress
from types import FrameType

import uvicorn

from bitdance_edge.serve.app import create_app
from bitdance_edge.serve.service import Service


class Server(uvicorn.Server):
    """Tells the service at once when a signal asks to stop, and stops if the service cannot start."""

    def __init__(self, service: Service) -> None:
        grace = math.ceil(service.settings.grace) + 5
        super().__init__(uvicorn.Config(create_app(service), log_config=None, timeout_graceful_shutdown=grace))
        self.service = service
        service.on_failure = self._end

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        with suppress(RuntimeError):  # no event loop runs, before the start or after the end
            asyncio.get_running_loop().call_soon_threadsafe(self.service.begin_stop)

    def _end(self) -> None:
        self.should_exit = True
