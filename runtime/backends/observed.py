"""ONNX Runtime on the CPU with observers: they see what each launch is about to read, and what it has just written.

Recorders keep these values, experiments change them. The loop and the stages do not know of it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import cast

import numpy as np

from bitdance_edge.runtime.backends.interface import Backend, InOrder, Launch, Memory, Stage
from bitdance_edge.runtime.backends.onnxruntime import HostBuffer

Observer = Callable[[str, Mapping[str, HostBuffer]], None]  # (stage, its buffers as the loop has bound them)


class ObservedBackend:
    """A backend that calls ``before`` ahead of each launch and ``after`` when it is done."""

    run_ahead = 0

    def __init__(self, backend: Backend, before: Observer | None = None, after: Observer | None = None) -> None:
        self.backend, self.before, self.after = backend, before, after
        self.name = backend.name

    def empty(self, shape: tuple[int, ...], dtype: str, *, ahead: bool = False) -> HostBuffer:
        return cast(HostBuffer, self.backend.empty(shape, dtype, ahead=ahead))

    def load(self, stage: str) -> "ObservedStage":
        return ObservedStage(self, stage, self.backend.load(stage))

    def capture(self, launches: Sequence[Launch]) -> InOrder:
        return InOrder(launches)

    def overwrite(self, target: Memory, source: Memory, rows: np.ndarray) -> Launch:
        return self.backend.overwrite(target, source, rows)

    def second_lane(self) -> "ObservedBackend":
        return self

    def trim(self, stages: Iterable[Stage]) -> None:
        self.backend.trim(cast(ObservedStage, stage).stage for stage in stages)

    def current(self) -> AbstractContextManager[None]:
        return self.backend.current()

    def close(self) -> None:
        self.backend.close()


class ObservedStage:
    """A stage whose launches are observed."""

    def __init__(self, observed: ObservedBackend, name: str, stage: Stage) -> None:
        self.observed, self.name, self.stage, self.time = observed, name, stage, stage.time

    def bind(self, buffers: Mapping[str, Memory]) -> Launch:
        launch = self.stage.bind(buffers)
        seen = cast(Mapping[str, HostBuffer], buffers)

        def observed_launch() -> None:
            if self.observed.before is not None:
                self.observed.before(self.name, seen)
            launch()
            if self.observed.after is not None:
                self.observed.after(self.name, seen)

        return observed_launch

    def close(self) -> None:
        self.stage.close()
