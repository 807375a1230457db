"""A backend seen from outside: what each launch is about to read, and what it has just written.

Recorders keep what they are told of; experiments change it. The loop and the stages know nothing of it.
"""

from collections.abc import Callable, Mapping

from bitdance_edge.runtime.backend import Backend, Buffer, Launch, Stage

Observer = Callable[[str, Mapping[str, Buffer]], None]  # (stage, its buffers as the loop has bound them)


class ObservedBackend:
    """Another backend, with ``before`` called ahead of each launch and ``after`` behind it."""

    def __init__(self, backend: Backend, before: Observer | None = None, after: Observer | None = None) -> None:
        self.backend, self.before, self.after = backend, before, after
        self.name = backend.name

    def empty(self, shape: tuple[int, ...], dtype: str) -> Buffer:
        return self.backend.empty(shape, dtype)

    def load(self, stage: str) -> Stage:
        return ObservedStage(self, stage, self.backend.load(stage))


class ObservedStage:
    def __init__(self, observed: ObservedBackend, name: str, stage: Stage) -> None:
        self.observed, self.name, self.stage, self.time = observed, name, stage, stage.time

    def bind(self, buffers: Mapping[str, Buffer]) -> Launch:
        launch = self.stage.bind(buffers)

        def observed_launch() -> None:
            if self.observed.before is not None:
                self.observed.before(self.name, buffers)
            launch()
            if self.observed.after is not None:
                self.observed.after(self.name, buffers)

        return observed_launch

    def close(self) -> None:
        self.stage.close()
