"""A stream of events for programs that run on asyncio: each event is made in a thread, and the loop stays free."""

from collections.abc import AsyncIterator, Generator
from contextlib import suppress

from bitdance_edge.runtime.errors import BitDanceError
from bitdance_edge.runtime.events import Event


async def in_threads(events: Generator[Event, None, None]) -> AsyncIterator[Event]:
    """Yield the events of a stream; leaving it, or cancelling its task, ends the work after the current patch."""
    import asyncio  # takes as long to import as a small model takes to open, and most programs need it not

    step = None
    try:
        while True:
            step = asyncio.ensure_future(asyncio.to_thread(next, events, None))
            event = await asyncio.shield(step)  # a cancelled task must not leave the thread inside the generator
            if event is None:
                return
            yield event
    finally:
        if step is not None and not step.done():
            with suppress(BitDanceError):
                await step
        await asyncio.to_thread(events.close)
