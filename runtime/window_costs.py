"""What a sweep costs beside single evaluations on this device: a few timed launches, kept in the user's cache."""

import hashlib
import json
import logging
import os
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Annotated

from bitdance_edge.runtime.backends.interface import Backend, Launch
from bitdance_edge.runtime.bundle import schema
from bitdance_edge.runtime.bundle.files import written_whole
from bitdance_edge.runtime.bundle.json_file import read_json
from bitdance_edge.runtime.bundle.limits import Like, NotNegative
from bitdance_edge.runtime.bundle.unpack import cache_folder
from bitdance_edge.runtime.errors import BundleError, StorageError
from bitdance_edge.runtime.loop import BoundLoop

log = logging.getLogger(__name__)

EVALUATIONS = 4  # timed together, as many as sweeps
ROUNDS = 3
# Before anything is timed: a device that captures launches runs them first, then captures them.
WARM_UP = 2


@dataclass(frozen=True)
class WindowCosts:
    """Seconds of one evaluation of the head, and of one sweep by its window."""

    evaluation: NotNegative
    sweeps: Mapping[Annotated[str, Like(r"[1-9]\d?", "a window")], NotNegative]


def seconds_of_evaluation(loop: BoundLoop) -> float:
    """Time the head's evaluations, one after the other, in a loop without a window."""
    launches = loop.sampler(rows_apart=False).evaluate[:EVALUATIONS]
    return _timed(loop.backend, launches, loop.sampler(rows_apart=False).x.read) / len(launches)


def seconds_of_sweep(loop: BoundLoop) -> float:
    """Time a sweep of a loop with a window, whatever is in its buffers."""
    window = loop.window_sampler(loop.sampler(rows_apart=False))
    return _timed(loop.backend, window.launches(0), window.sampler.x.read)


def _timed(backend: Backend, launches: Sequence[Launch], wait: Callable[[], object]) -> float:
    captured = backend.capture(launches)
    try:
        seconds = []
        for _ in range(WARM_UP + ROUNDS):
            wait()
            started = perf_counter()
            captured()
            wait()
            seconds.append(perf_counter() - started)
        return statistics.median(seconds[WARM_UP:])
    finally:
        captured.close()


def costs_key(*what: object) -> str:
    """A name for what costs depend on, this machine among it."""
    machine = (platform.node(), platform.machine(), os.cpu_count())
    return hashlib.sha256(json.dumps([*machine, *map(str, what)]).encode()).hexdigest()[:16]


def kept_costs(key: str) -> WindowCosts | None:
    """Costs that were measured before, or None."""
    path = cache_folder() / "windows" / f"{key}.json"
    try:
        return schema.record(WindowCosts, read_json(path)[0], str(path))
    except (OSError, ValueError, BundleError):  # none, or not whole: they are measured again
        return None


def keep_costs(key: str, costs: WindowCosts) -> None:
    """Keep costs for the next process; where the cache cannot be written, it measures them again."""
    path = cache_folder() / "windows" / f"{key}.json"
    try:
        with written_whole(path) as file:
            file.write((json.dumps(asdict(costs)) + "\n").encode())
    except StorageError as error:
        log.info("the costs of windows are not kept: %s", error)
