"""A process that makes shards on one device, one order after the other, and ends with the process that started it."""

import queue
import signal
import threading
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from bitdance_edge.errors import BitDanceError, plain
from bitdance_edge.runtime import Cancelled
from bitdance_edge.scale.events import Added
from bitdance_edge.scale.maker import ShardMaker


@dataclass(frozen=True)
class Ready:
    """The bundle is open; ``line`` says on what it runs."""

    line: str


@dataclass(frozen=True)
class Failed:
    """What the worker cannot do, and no other attempt would."""

    message: str


def work(connection: Connection, folder: Path, bundle: str | None, device: str, threads: int | None) -> None:
    """Open the bundle of a job's folder, then make the shards whose numbers arrive, until the connection is closed.

    Reports ``Ready`` or ``Failed``, then for each shard ``Added`` and its ``Record``, or ``Failed``.
    """
    for name in ("SIGINT", "SIGHUP"):  # they reach the whole group; the other end says when to stop
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    cancel, orders = threading.Event(), queue.SimpleQueue[int | None]()
    threading.Thread(target=_listen, args=(connection, cancel, orders), daemon=True).start()
    with suppress(Cancelled, BrokenPipeError):  # the other end has closed, or is gone
        try:
            maker = ShardMaker(folder, bundle, device=device, threads=threads)
            connection.send(Ready(next(maker.pipeline.choice.lines())))
            while (shard := orders.get()) is not None:
                connection.send(maker.make(shard, lambda images: connection.send(Added(images)), cancel))
        except Cancelled:
            raise
        except BitDanceError as error:
            connection.send(Failed(plain(error)))


def _listen(connection: Connection, cancel: threading.Event, orders: "queue.SimpleQueue[int | None]") -> None:
    """Queue the orders; when there can be no more, stop the shard that is being made."""
    with suppress(EOFError, OSError):
        while True:
            orders.put(connection.recv())
    cancel.set()
    orders.put(None)
