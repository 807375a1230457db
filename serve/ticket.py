"""One accepted request: the work it asks for, and the events that come back to whoever waits for it."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass

import numpy as np

from bitdance_edge.runtime import GeneratedImage
from bitdance_edge.serve.errors import SERVER, ApiError, cancelled
from bitdance_edge.serve.work import StageReport, Work


@dataclass(frozen=True)
class Started:
    """A worker has taken the request, together with others in a batch of this many images."""

    batch_images: int


@dataclass(frozen=True, kw_only=True)
class Progress:
    """``images`` of the request have ``patch`` of ``patches``; ``previews`` are some of them, uint8 ``[H, W, 3]``."""

    images: range
    patch: int
    patches: int
    previews: dict[int, np.ndarray]


@dataclass(frozen=True)
class ImageReady:
    index: int  # in the request
    image: GeneratedImage


@dataclass(frozen=True)
class Tokenized:
    tokens: np.ndarray  # int8 [h*w, C]
    pixels: np.ndarray  # uint8 [H, W, 3]


@dataclass(frozen=True, kw_only=True)
class Completed:
    """All is there; the times are those of the whole batch."""

    seconds: float
    waited: float
    stages: dict[str, StageReport]


Event = Started | Progress | ImageReady | Tokenized | Completed


class Ticket:
    """Iterate ``events()`` once; leaving that early, or ``cancel()``, gives the request up."""

    def __init__(
        self,
        work: Work,
        time_limit: float,
        on_given_up: Callable[["Ticket"], None],
        on_closed: Callable[["Ticket", str], None],
    ) -> None:
        self.work, self.time_limit = work, time_limit
        self.accepted = asyncio.get_running_loop().time()
        self.closed = False  # nobody waits for more
        self._on_given_up, self._on_closed = on_given_up, on_closed
        self._events: asyncio.Queue[Event | ApiError] = asyncio.Queue()

    def put(self, event: Event | ApiError) -> None:
        """Pass an event on; after the last one nothing is kept."""
        if self.closed:
            return
        self._events.put_nowait(event)
        if isinstance(event, Completed | ApiError):
            self.closed = True
            self._on_closed(self, "completed" if isinstance(event, Completed) else event.code)

    def give_up(self, error: ApiError) -> None:
        """End with an error; the work ends at its next patch, unless others share its batch."""
        if not self.closed:
            self.put(error)
            self._on_given_up(self)

    def cancel(self) -> None:
        self.give_up(cancelled())

    async def events(self) -> AsyncGenerator[Event, None]:
        """What happens to the request, until it is completed.

        Raises:
            ApiError: it failed, was cancelled or ran out of time.
        """
        loop = asyncio.get_running_loop()
        try:
            while True:
                left = self.accepted + self.time_limit - loop.time()
                try:
                    event = await asyncio.wait_for(self._events.get(), max(0.0, left))
                except TimeoutError:
                    message = f"not done within the {self.time_limit:g} s that this server gives a request"
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
