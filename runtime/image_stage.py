"""The decoder or the encoder: a stage that takes images, however many, as many at once as it is allowed."""

from collections.abc import Mapping, Sequence

import numpy as np

from bitdance_edge.runtime.backends.interface import Backend, Buffer, Launch, Pending, Stage
from bitdance_edge.runtime.bundle.manifest import Bundle
from bitdance_edge.runtime.bundle.specs import ImageSize


class ImageStage:
    """Runs on the lane of its backend; the results are on their way when it is called.

    Args:
        output: the tensor that is wanted of it.
        at_once: images in one launch. Nothing in an image depends on the others, so parts give what the whole would.
    """

    def __init__(self, backend: Backend, bundle: Bundle, stage: Stage, name: str, output: str, at_once: int) -> None:
        self.backend, self.spec, self.stage = backend, bundle.stage(name), stage
        self.output, self.at_once = output, at_once
        self._bound: tuple[dict[str, int], dict[str, Buffer], Launch] | None = None

    def __call__(self, inputs: Mapping[str, np.ndarray], size: ImageSize) -> "Joined":
        """Arrays ``[B, ...]`` by the names of the stage's inputs to the output's ``[B, ...]``, of images of one size.

        The stages see a sequence of tokens by rows of patches; the values and their order are the same.
        """
        images = len(next(iter(inputs.values())))
        starts = range(0, images, self.at_once)
        return Joined([self._run({k: v[i : i + self.at_once] for k, v in inputs.items()}, size) for i in starts])

    def close(self) -> None:
        if self._bound is not None:
            for buffer in self._bound[1].values():
                buffer.free()
            self._bound = None

    def _run(self, inputs: Mapping[str, np.ndarray], size: ImageSize) -> Pending:
        sizes = {"B": len(next(iter(inputs.values()))), **size.dims}
        if self._bound is None or self._bound[0] != sizes:
            self._bind(sizes)
        assert self._bound is not None
        _, buffers, launch = self._bound
        for name, values in inputs.items():
            buffers[name].write(values.reshape(buffers[name].shape))
        launch()
        return buffers[self.output].fetch()

    def _bind(self, sizes: dict[str, int]) -> None:
        self.close()
        buffers = {
            tensor.name: self.backend.empty(tensor.sized(sizes), tensor.dtype)
            for tensor in (*self.spec.inputs, *self.spec.outputs)
        }
        self._bound = (sizes, buffers, self.stage.bind(buffers))


class Joined:
    """The results of several launches as one."""

    def __init__(self, parts: Sequence[Pending]) -> None:
        self.parts = parts

    def done(self) -> bool:
        return all(part.done() for part in self.parts)

    def wait(self) -> np.ndarray:
        return np.concatenate([part.wait() for part in self.parts])
