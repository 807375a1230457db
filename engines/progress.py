"""A build under way: which phase it is in, for how long, and how to stop it."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from bitdance_edge.runtime.errors import Cancelled


class BuildWatch:
    """Written by the thread that builds, read by the one that waits for it."""

    def __init__(self, cancel: threading.Event) -> None:
        self.cancel = cancel
        self.started = time.perf_counter()
        self._phases: list[list] = []  # open phases, outermost first: name, steps done, steps
        self._idle = "starting"  # what is going on while no phase is open
        self._lock = threading.Lock()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.started

    @property
    def phase(self) -> str:
        """The open phases, outermost first: ``Building engine 2/6 > Optimizing 3/9``."""
        with self._lock:
            return " > ".join(f"{name} {done}/{steps}" for name, done, steps in self._phases) or self._idle

    def start(self, name: str, steps: int) -> None:
        with self._lock:
            self._phases.append([name, 0, steps])
            self._idle = "finishing"

    def step(self, name: str, step: int) -> bool:
        """Note a step; False asks the library to stop."""
        with self._lock:
            for phase in self._phases:
                if phase[0] == name:
                    phase[1] = step + 1
        return not self.cancel.is_set()

    def finish(self, name: str) -> None:
        with self._lock:
            self._phases = [phase for phase in self._phases if phase[0] != name]

    def require_wanted(self, what: str) -> None:
        """Raises: Cancelled: ``cancel`` is set."""
        if self.cancel.is_set():
            raise Cancelled(f"cancelled at {what}; nothing was written")

    @contextmanager
    def phase_of(self, name: str) -> Iterator[None]:
        """A phase of one step, begun only if nobody has cancelled.

        Raises:
            Cancelled: ``cancel`` is set.
        """
        self.require_wanted(name)
        self.start(name, 1)
        try:
            yield
        finally:
            self.finish(name)


def progress_monitor(trt: ModuleType, watch: BuildWatch) -> Any:
    """An ``IProgressMonitor`` that tells ``watch``; its methods are called from the library's threads.

    https://docs.nvidia.com/deeplearning/tensorrt/latest/_static/python-api/infer/Core/ProgressMonitor.html
    """

    class Monitor(trt.IProgressMonitor):
        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            watch.start(phase_name, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return watch.step(phase_name, step)

        def phase_finish(self, phase_name: str) -> None:
            watch.finish(phase_name)

    return Monitor()
