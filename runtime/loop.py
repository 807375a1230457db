"""The generation loop: prompt, then a backbone step and N + 1 head evaluations a patch.

Knows tokens, nothing of images, seeds or files. R rows run through the backbone: B images, twice that under guidance
(conditional rows first). Everything a patch needs is allocated and bound once, before the first patch; what changes
from patch to patch (positions, mask, guidance, noise) is a value in a buffer, so that a backend can capture the patch.
"""

from collections import deque
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass

import numpy as np

from bitdance_edge.runtime.attention import AttentionWindow
from bitdance_edge.runtime.backends.interface import Backend, Pending, Stage
from bitdance_edge.runtime.bound_stages import BackbonePass, Modulation, PatchRun, PatchSampler, Prompt
from bitdance_edge.runtime.bundle.manifest import Bundle
from bitdance_edge.runtime.bundle.specs import ImageSize
from bitdance_edge.runtime.loop_buffers import LoopBuffers
from bitdance_edge.runtime.sampler import Schedule, patch_guidance

# (patch, rows_apart) -> float32 [steps + 1, B, P, C], or [steps + 1, R, P, C] where conditional and unconditional rows
# draw apart
NoiseSource = Callable[[int, bool], np.ndarray]

# Rows of the products that modulate several head evaluations at once: enough to use each weight often while it is near,
# few enough that what is made stays near until it is used (11 MB at B size).
MODULATED_ROWS = 256


@dataclass(frozen=True)
class LoopShape:
    """What decides the size of the buffers that all patches use; a prompt has buffers of its own."""

    images: int
    guided: bool
    steps: int
    sampler: str = "sde"

    @property
    def rows(self) -> int:
        return 2 * self.images if self.guided else self.images


def modulated_at_once(rows: int, evaluations: int) -> int:
    """The number of a patch's head evaluations that are modulated together, with ``rows`` rows each (R * P)."""
    batches = -(-evaluations // max(1, MODULATED_ROWS // rows))
    return -(-evaluations // batches)


@dataclass(frozen=True, kw_only=True)
class TokenRequest:
    """What the loop is asked for: B images, all with the same settings.

    ``prompt`` int64 holds the ids of all R rows, conditional ones first: ``[R]`` classes, or ``[R, T]`` text padded on
    the left by ``padding`` int64 ``[R]``.
    """

    images: int
    prompt: np.ndarray
    padding: np.ndarray
    size: ImageSize
    steps: int
    guidance: float  # 1 is off
    guidance_schedule: str
    prefix: np.ndarray  # [B, K, P, C] of -1 and +1: the first K patches, given rather than sampled
    sampler: str = "sde"

    @property
    def shape(self) -> LoopShape:
        return LoopShape(self.images, len(self.prompt) > self.images, self.steps, self.sampler)


def generate_tokens(loop: "BoundLoop", request: TokenRequest, noise: NoiseSource) -> Generator[np.ndarray, None, None]:
    """Generate patch after patch; yields the tokens of each, float32 ``[B, P, C]`` of -1 and +1.

    Under the linear schedule the first patch has guidance 1: conditional and unconditional rows are then sampled
    apart, as the reference does, and only the conditional ones belong to the image. A patch is asked for before the
    tokens of the one before are waited for, as far as the backend runs ahead: its noise is drawn meanwhile.
    """
    loop.start(request)
    patches, given = request.size.patches, request.prefix.shape[1]
    asked: deque[Pending] = deque()
    for patch in range(patches):
        guidance = patch_guidance(request.guidance, request.guidance_schedule, patch, patches)
        rows_apart = loop.shape.guided and guidance == 1
        run = loop.move_to(patch, rows_apart)
        if patch < given:
            run.accept(request.prefix[:, patch])
        else:
            run.sample(noise(patch, rows_apart), guidance)
        asked.append(run.tokens.fetch())
        if len(asked) > loop.backend.run_ahead:
            yield asked.popleft().wait()[: request.images]
    for left in asked:
        yield left.wait()[: request.images]


class BoundLoop:
    """The stages bound to buffers of one shape, for one request after another of that shape."""

    def __init__(self, backend: Backend, bundle: Bundle, stages: Mapping[str, Stage], shape: LoopShape) -> None:
        self.backend, self.bundle, self.shape = backend, bundle, shape
        at_once = modulated_at_once(shape.rows * bundle.model.tokens_per_step, shape.steps + 1)
        self.schedule = Schedule.of(shape.sampler, shape.steps, bundle.sampling.time_shift)
        self.buffers = LoopBuffers(backend, bundle, stages, {"R": shape.rows, "N": shape.steps + 1, "M": at_once})
        self._prompt: Prompt | None = None
        self._samplers: dict[bool, PatchSampler] = {}
        try:
            self.modulation = Modulation(self.buffers, self.schedule)
            self._patch_pass = BackbonePass(self.buffers, self.buffers.embeddings, often=True)
        except BaseException:
            self.buffers.free()
            raise

    def free(self) -> None:
        """Give the memory back, and what was bound to it."""
        self._drop_prompt()
        self._patch_pass.close()
        self._samplers.clear()
        self.buffers.free()

    def start(self, request: TokenRequest) -> None:
        """Embed the prompt of another request; one of another length gets buffers of its length."""
        cache = self.buffers.cache
        cache.reset()
        self.window = AttentionWindow(self.bundle.model.tokens_per_step, cache.length, request.padding)
        self.buffers.position.begin(request.size)
        length = request.prompt.shape[-1]
        if self._prompt is None or self._prompt.length != length:
            self._drop_prompt()
            self._prompt = Prompt(self.buffers, length)
        self._prompt(request.prompt)

    def move_to(self, patch: int, rows_apart: bool) -> PatchRun:
        """Move to a patch: say where it stands in the image and in the cache, and who sees whom.

        Args:
            rows_apart: whether conditional and unconditional rows draw noise of their own.

        Returns:
            What runs the patch.
        """
        backbone = self.backbone(patch)
        self.buffers.position.move_to(patch)
        backbone.move(self.window)
        return backbone.run(self.sampler(rows_apart))

    def backbone(self, patch: int) -> BackbonePass:
        """The pass whose result is the condition of a patch: over the prompt, or over the patch before."""
        assert self._prompt is not None, "the loop has not been started"
        return self._prompt.backbone if patch == 0 else self._patch_pass

    def sampler(self, rows_apart: bool) -> PatchSampler:
        """The head bound for rows that share their noise, or for rows that are drawn apart."""
        if rows_apart not in self._samplers:
            draws = self.shape.rows if rows_apart else self.shape.images
            self._samplers[rows_apart] = PatchSampler(self.buffers, self.modulation, self.schedule, draws)
        return self._samplers[rows_apart]

    def _drop_prompt(self) -> None:
        if self._prompt is not None:
            self._prompt.backbone.close()
            self.buffers.release(self._prompt.buffers)
            self._prompt = None
