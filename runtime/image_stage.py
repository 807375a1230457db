"""The decoder or the encoder: takes any number of images, and runs as many at once as it is allowed."""

from collections.abc import Mapping, Sequence

import numpy as np

from bitdance_edge.runtime.backends.interface import Backend, Buffer, Launch, Pending, Stage
from bitdance_edge.runtime.bundle.dtypes import tensor_bytes
from bitdance_edge.runtime.bundle.manifest import Bundle
from bitdance_edge.runtime.bundle.specs import ImageSize
from bitdance_edge.runtime.bundle.stage_names import StageName

IMAGE_STAGES = {StageName.DECODER: "pixels", StageName.ENCODER: "tokens"}  # by name, and what each makes


class ImageStage:
    """Runs on the lane of its backend; a call queues the launches and returns their results as pending.

    Args:
        output: the tensor that calls return.
        at_once: images in one launch. Images do not depend on each other, so that parts of a batch give the same bytes.
    """

    def __init__(self, backend: Backend, bundle: Bundle, stage: Stage, name: str, output: str, at_once: int) -> None:
        self.backend, self.spec, self.stage = backend, bundle.stage(name), stage
        self.output, self.at_once = output, at_once
        self._bound: tuple[dict[str, int], dict[str, Buffer], Launch] | None = None
        self._largest = 0  # bytes of tensors, of the launches that the backend keeps memory for

    def __call__(self, inputs: Mapping[str, np.ndarray], size: ImageSize) -> "Joined":
        """Start the launches for arrays ``[B, ...]`` by the names of the stage's inputs, of images of one size.

        The stage's own shapes may split an axis further (tokens by rows of patches), values in the same order.
        """
        images = len(next(iter(inputs.values())))
        starts = range(0, images, self.at_once)
        return Joined([self._run({k: v[i : i + self.at_once] for k, v in inputs.items()}, size) for i in starts])

    def bind(self, images: int, size: ImageSize) -> None:
        """Allocate and bind the buffers for ``images`` of one size, in place of those for others."""
        sizes = {"B": images, **size.dims}
        if self._bound is not None and self._bound[0] == sizes:
            return
        tensors = (*self.spec.inputs, *self.spec.outputs)
        needed = sum(tensor_bytes(tensor.sized(sizes), tensor.dtype) for tensor in tensors)
        if needed > self._largest:
            self.backend.trim([self.stage])
            self._largest = needed
        self.close()
        buffers = {tensor.name: self.backend.empty(tensor.sized(sizes), tensor.dtype) for tensor in tensors}
        self._bound = (sizes, buffers, self.stage.bind(buffers))

    def close(self) -> None:
        """Give the buffers back."""
        if self._bound is not None:
            for buffer in self._bound[1].values():
                buffer.free()
            self._bound = None

    def _run(self, inputs: Mapping[str, np.ndarray], size: ImageSize) -> Pending:
        self.bind(len(next(iter(inputs.values()))), size)
        assert self._bound is not None
        _, buffers, launch = self._bound
        for name, values in inputs.items():
            buffers[name].write(values.reshape(buffers[name].shape))
        launch()
        return buffers[self.output].fetch()


class Joined:
    """The results of several launches as one."""

    def __init__(self, parts: Sequence[Pending]) -> None:
        self.parts = parts

    def done(self) -> bool:
        return all(part.done() for part in self.parts)

    def wait(self) -> np.ndarray:
        return np.concatenate([part.wait() for part in self.parts])
