"""One accepted request: its work, and the events that its route or job reads."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass

import numpy as np

from bitdance_edge.runtime import GeneratedImage
from bitdance_edge.runtime.backends.interface import StageTime
from bitdance_edge.serve.errors import SERVER, ApiError, cancelled
from bitdance_edge.serve.work import Work


@dataclass(frozen=True)
class Started:
    """A worker has begun the request, in a batch of ``batch_images`` images."""

    batch_images: int


@dataclass(frozen=True, kw_only=True)
class PatchReady:
    """``images`` of the request have ``patch`` of ``patches``; ``previews`` shows some of them, uint8 ``[H, W, 3]``."""

    images: range
    patch: int
    patches: int
    previews: dict[int, np.ndarray]


@dataclass(frozen=True)
class ImageReady:
    """An image is finished."""

    index: int  # in the request
    image: GeneratedImage


@dataclass(frozen=True)
class Tokenized:
    """An image has been turned into tokens and back."""

    tokens: np.ndarray  # int8 [h*w, C]
    pixels: np.ndarray  # uint8 [H, W, 3]


@dataclass(frozen=True, kw_only=True)
class Completed:
    """The request is done. Times are in seconds; ``seconds`` and ``stages`` are those of the whole batch."""

    seconds: float
    waited: float
    stages: dict[str, StageTime]


Event = Started | PatchReady | ImageReady | Tokenized | Completed


class Ticket:
    """Iterate ``events()`` once. Leaving it early, or ``cancel()``, cancels the request."""

    def __init__(
        self,
        work: Work,
        time_limit: float,
        on_given_up: Callable[["Ticket"], None],
        on_closed: Callable[["Ticket", str], None],
    ) -> None:
        self.work, self.time_limit = work, time_limit
        self.accepted = asyncio.get_running_loop().time()
        self.closed = False  # it has had its last event
        self._on_given_up, self._on_closed = on_given_up, on_closed
        self._events: asyncio.Queue[Event | ApiError] = asyncio.Queue()

    def put(self, event: Event | ApiError) -> None:
        """Add an event for the reader; any after the last one is dropped."""
        if self.closed:
            return
        self._events.put_nowait(event)
        if isinstance(event, Completed | ApiError):
            self.closed = True
            self._on_closed(self, "completed" if isinstance(event, Completed) else event.code)

    def give_up(self, error: ApiError) -> None:
        """End with an error. The batch is cancelled at its next patch, unless other tickets still need it."""
        if not self.closed:
            self.put(error)
            self._on_given_up(self)

    def cancel(self) -> None:
        """Give up because the client asked for it or disconnected."""
        self.give_up(cancelled())

    async def events(self) -> AsyncGenerator[Event, None]:
        """Yield the events of the request until it is completed.

        Raises:
            ApiError: the request failed, was cancelled or reached the time limit.
        """
        loop = asyncio.get_running_loop()
        try:
            while True:
                left = self.accepted + self.time_limit - loop.time()
                try:
                    event = await asyncio.wait_for(self._events.get(), max(0.0, left))
                except TimeoutError:
                    message = f"the request was not done within {self.time_limit:g} s, the time limit of this server"
                    late = ApiError(504, "time_limit", message, kind=SERVER)
                    self.give_up(late)
                    raise late from None
                if isinstance(event, ApiError):
                    raise event
                yield event
                if isinstance(event, Completed):
                    return
        finally:
            self.cancel()
