"""The buffers that the stages of the loop share, and where the current patch stands in the image."""

from collections.abc import Mapping, Sequence

import numpy as np

from bitdance_edge.runtime.backends.interface import Backend, Buffer, Stage
from bitdance_edge.runtime.bundle.manifest import Bundle
from bitdance_edge.runtime.bundle.specs import ImageSize
from bitdance_edge.runtime.bundle.stage_names import StageName
from bitdance_edge.runtime.cache import KVCache


class LoopBuffers:
    """Allocates for one shape of loop, and owns what it allocated.

    Args:
        sizes: of the named dimensions: R rows, N evaluations of the head a patch, M of them modulated at once.
        kept: batches of modulations that are kept: one, which is read before the next is made, or all of a patch.
    """

    def __init__(
        self,
        backend: Backend,
        bundle: Bundle,
        stages: Mapping[str, Stage],
        sizes: Mapping[str, int],
        kept: int = 1,
    ) -> None:
        self.backend, self.bundle, self.stages, self.sizes = backend, bundle, stages, sizes
        self._owned: list[Buffer] = []
        self._windows: dict[int, dict[str, Buffer]] = {}
        try:
            self.cache = KVCache(backend, bundle, sizes["R"])
            self._owned += self.cache.buffers.values()
            self.position = PatchPosition(self)
            self.condition = self.allocate(StageName.BACKBONE, "condition")
            self.embeddings = self.allocate(StageName.TOKENS, "embeddings")  # of a patch
            # [kept, M, R, P, n*W] each
            self.modulations = {
                tensor.name: self.empty((kept, *tensor.sized(sizes)), tensor.dtype)
                for tensor in bundle.stage(StageName.MODULATION).outputs
            }
        except BaseException:
            self.free()
            raise

    def allocate(self, stage: StageName, tensor: str, **sizes: int) -> Buffer:
        """Allocate one input or output of a stage, with its named dimensions as in this loop or in ``sizes``."""
        spec = self.bundle.stage(stage)
        found = next(item for item in (*spec.inputs, *spec.outputs) if item.name == tensor)
        return self.empty(found.sized({**self.sizes, **sizes}), found.dtype)

    def window_modulations(self, window: int) -> Mapping[str, Buffer]:
        """The modulations of a window, cut from the tables: one for all samplers, which take turns."""
        if window not in self._windows:
            self._windows[window] = {
                name: self.allocate(StageName.SETTLE, name, B=1, W=window) for name in self.modulations
            }
        return self._windows[window]

    def empty(self, shape: tuple[int, ...], dtype: str, *, ahead: bool = False) -> Buffer:
        """Allocate a tensor; ``ahead`` as for ``Backend.empty``."""
        self._owned.append(self.backend.empty(shape, dtype, ahead=ahead))
        return self._owned[-1]

    def release(self, buffers: Sequence[Buffer]) -> None:
        """Free some of the buffers before the others."""
        for buffer in buffers:
            self._owned.remove(buffer)
            buffer.free()

    def free(self) -> None:
        """Free all buffers; what is bound to them must not be launched any more."""
        while self._owned:
            self._owned.pop().free()


class PatchPosition:
    """Where the current patch stands in the image, for the stages that ask."""

    def __init__(self, buffers: LoopBuffers) -> None:
        spec = buffers.bundle.stage(StageName.BACKBONE)
        names = [tensor.name for tensor in spec.inputs if tensor.name in ("patch_index", "patches_across")]
        self.buffers = {name: buffers.allocate(StageName.BACKBONE, name) for name in names}

    def begin(self, size: ImageSize) -> None:
        """Start an image of this size."""
        if "patches_across" in self.buffers:
            self.buffers["patches_across"].write(np.array(size.patches_across))

    def move_to(self, patch: int) -> None:
        self.buffers["patch_index"].write(np.array(patch))
