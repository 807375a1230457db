"""A bundle's stages on one device, loaded when they are first used, and the memory kept between requests."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property

import numpy as np

from bitdance_edge.runtime.backends.interface import Backend, Pending, Stage, StageTime
from bitdance_edge.runtime.bundle.manifest import Bundle
from bitdance_edge.runtime.bundle.specs import ImageSize
from bitdance_edge.runtime.bundle.stage_names import LOOP_STAGES, WINDOW_STAGES, StageName
from bitdance_edge.runtime.image_stage import IMAGE_STAGES, ImageStage
from bitdance_edge.runtime.loop import BoundLoop, LoopShape
from bitdance_edge.runtime.memory_plan import MemoryPlan, decoded_at_once
from bitdance_edge.runtime.noise import Stream, normals
from bitdance_edge.runtime.preview import PreviewCanvas, PreviewMap, full_preview


class LoadedBundle:
    """Knows stages and buffers, nothing of requests; used by one thread at a time.

    Args:
        max_batch: images that run together.
        plan: of the memory of a GPU, which says how images are decoded; None on a CPU.
    """

    def __init__(self, bundle: Bundle, backend: Backend, max_batch: int, plan: MemoryPlan | None) -> None:
        self.bundle, self.backend, self.max_batch, self.plan = bundle, backend, max_batch, plan
        self._stages: dict[str, Stage] = {}
        self._image_stages: dict[StageName, ImageStage] = {}
        self._idle: BoundLoop | None = None

    def close(self) -> None:
        """Give back buffers, sessions and engines, all of them also where one raises."""
        with ExitStack() as closing:
            for stage in (*self._stages.values(), *self._image_stages.values()):
                closing.callback(stage.close)
            if self._idle is not None:
                closing.callback(self._idle.free)
            self._idle = None
            self._image_stages.clear()
            self._stages.clear()

    def times(self) -> dict[str, StageTime]:
        """Launches and seconds of every loaded stage."""
        return {name: stage.time for name, stage in self._stages.items()}

    @contextmanager
    def loop(self, shape: LoopShape) -> Iterator[BoundLoop]:
        """Lend a loop of this shape: the idle one if it fits; afterwards it is idle again."""
        loop, self._idle = self._idle, None
        if loop is not None and loop.shape != shape:
            loop.free()
            loop = None
        if loop is None:
            names = (*LOOP_STAGES, *WINDOW_STAGES) if shape.window > 1 else LOOP_STAGES
            stages = {name: self._stage(name) for name in names}
            loop = BoundLoop(self.backend, self.bundle, stages, shape)
        try:
            yield loop
        finally:
            if self._idle is not None:  # of a request that ran at the same time
                self._idle.free()
            self._idle = loop

    def decode(self, tokens: np.ndarray, seeds: Sequence[int], size: ImageSize) -> Pending:
        """Start decoding tokens ``[B, h*w, C]`` of images with these seeds to pixels uint8 ``[B, H, W, 3]``."""
        model, inputs = self.bundle.model, {"tokens": tokens}
        if model.decoder_noise:
            shape = (size.tokens, model.bits)
            inputs["noise"] = np.stack([normals(seed, Stream.DECODER, 0, 1, shape)[0] for seed in seeds])
        return self.image_stage(StageName.DECODER)(inputs, size)

    def encode(self, pixels: np.ndarray, size: ImageSize) -> Pending:
        """Start encoding pixels uint8 ``[B, H, W, 3]`` to the encoder's tokens."""
        return self.image_stage(StageName.ENCODER)({"pixels": pixels}, size)

    def preview(self, tokens: np.ndarray, seeds: Sequence[int], size: ImageSize) -> Pending:
        """Start decoding the first tokens ``[B, K, C]`` of images to what can be seen of them."""
        side = self.bundle.model.patch_side
        return full_preview(tokens, size, side, lambda padded: self.decode(padded, seeds, size))

    def preview_canvas(self, images: int, size: ImageSize) -> PreviewCanvas:
        """A canvas for fast previews of ``images`` of one size.

        Raises:
            RequestError: the bundle has no map for them.
        """
        model = self.bundle.model
        return PreviewCanvas(self._preview_map, images, model.bits, size, model.patch_side)

    def image_stage(self, name: StageName) -> ImageStage:
        """The decoder or the encoder, on a lane of its own where the plan has memory for that."""
        if name not in self._image_stages:
            backend = self._second_lane if self.plan is None or self.plan.overlapped else self.backend
            stage = self._stages[name] = backend.load(name)
            alone = decoded_at_once(self.bundle.stage(name), self.max_batch)
            at_once = alone if self.plan is None else self.plan.decoder_images
            self._image_stages[name] = ImageStage(backend, self.bundle, stage, name, IMAGE_STAGES[name], at_once)
        return self._image_stages[name]

    @property
    def encodes(self) -> bool:
        """Whether the encoder is loaded."""
        return StageName.ENCODER in self._image_stages

    def _stage(self, name: str) -> Stage:
        if name not in self._stages:
            self._stages[name] = self.backend.load(name)
        return self._stages[name]

    @cached_property
    def _second_lane(self) -> Backend:
        return self.backend.second_lane()

    @cached_property
    def _preview_map(self) -> PreviewMap:
        bundle = self.bundle
        path = bundle.verified_file(bundle.require_fast_previews())
        return PreviewMap.load(path, bundle.model.bits, bundle.model.pixels_per_token)
