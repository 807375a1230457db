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
from bitdance_edge.runtime.bound_stages import BackbonePass, Modulation, Prompt
from bitdance_edge.runtime.bundle.manifest import Bundle
from bitdance_edge.runtime.bundle.specs import ImageSize
from bitdance_edge.runtime.given import GivenTokens
from bitdance_edge.runtime.loop_buffers import LoopBuffers
from bitdance_edge.runtime.patch_run import PatchRun, PatchSampler
from bitdance_edge.runtime.sampler import Schedule, patch_guidance
from bitdance_edge.runtime.window import WindowRun, WindowSampler

# (patch, rows_apart) -> float32 [steps + 1, B, P, C], or [steps + 1, R, P, C] where conditional and unconditional rows
# draw apart
NoiseSource = Callable[[int, bool], np.ndarray]
# (patch, what the head expects of its bits: float32 [B, P, C])
Expectations = Callable[[int, np.ndarray], None]

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
    starts: tuple[float, ...] = ()  # times after 0 at which patches start, each with a schedule of its own
    window: int = 1  # head evaluations in one pass; 1: one after the other

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
    given: GivenTokens
    sampler: str = "sde"
    window: int = 1

    @property
    def shape(self) -> LoopShape:
        guided = len(self.prompt) > self.images
        return LoopShape(self.images, guided, self.steps, self.sampler, self.given.starts, self.window)


def generate_tokens(
    loop: "BoundLoop", request: TokenRequest, noise: NoiseSource, expectations: Expectations | None = None
) -> Generator[np.ndarray, None, None]:
    """Generate patch after patch; yields the tokens of each, float32 ``[B, P, C]`` of -1 and +1.

    Patches that are given are not sampled. With ``expectations``, the head is asked once for each that is given behind
    a sampled one, before that patch is yielded.

    Under the linear schedule the first patch has guidance 1: conditional and unconditional rows are then sampled
    apart, as the reference does, and only the conditional ones belong to the image. A patch is asked for before the
    tokens of the one before are waited for, as far as the backend runs ahead: its noise is drawn meanwhile.
    """
    loop.start(request)
    patches, given = request.size.patches, request.given
    judged = set(given.judged) if expectations else set()
    asked: deque[tuple[Pending, Pending | None]] = deque()

    def wait(patch: int) -> np.ndarray:
        tokens, expected = asked.popleft()
        if expectations and expected is not None:
            expectations(patch, expected.wait()[: request.images])
        return tokens.wait()[: request.images]

    for patch in range(patches):
        guidance = patch_guidance(request.guidance, request.guidance_schedule, patch, patches)
        rows_apart = loop.shape.guided and guidance == 1
        tokens, expected = given.tokens[:, patch], None
        if given.taken(patch):
            run = loop.move_to(patch, rows_apart)
            expected = run.accept(tokens, noise(patch, rows_apart) if patch in judged else None)
        else:
            run = loop.move_to(patch, rows_apart, given.start(patch))
            run.sample(noise(patch, rows_apart), guidance, tokens, given.held[patch])
        asked.append((run.tokens.fetch(), expected))
        if len(asked) > loop.backend.run_ahead:
            yield wait(patch + 1 - len(asked))
    while asked:
        yield wait(patches - len(asked))


class BoundLoop:
    """The stages bound to buffers of one shape, for one request after another of that shape."""

    def __init__(self, backend: Backend, bundle: Bundle, stages: Mapping[str, Stage], shape: LoopShape) -> None:
        self.backend, self.bundle, self.shape = backend, bundle, shape
        at_once = modulated_at_once(shape.rows * bundle.model.tokens_per_step, shape.steps + 1)
        batches = -(-(shape.steps + 1) // at_once)
        sizes = {"R": shape.rows, "M": at_once, "N": batches * at_once}
        self.buffers = LoopBuffers(backend, bundle, stages, sizes, kept=batches if shape.window > 1 else 1)
        self._prompt: Prompt | None = None
        self._longest = 0  # prompt so far, in tokens
        self._schedules: dict[float, tuple[Schedule, Modulation]] = {}  # by the time at which they start
        self._samplers: dict[tuple[bool, float], PatchSampler] = {}
        self._windows: dict[PatchSampler, WindowSampler] = {}
        self._runs: dict[tuple[BackbonePass, PatchSampler], PatchRun] = {}
        try:
            for start in (0.0, *shape.starts):
                schedule = Schedule.of(shape.sampler, shape.steps, bundle.sampling.time_shift, start)
                self._schedules[start] = schedule, Modulation(self.buffers, schedule)
            self._patch_pass = BackbonePass(self.buffers, self.buffers.embeddings, often=True)
        except BaseException:
            self.buffers.free()
            raise

    def free(self) -> None:
        """Give the memory back, and what was bound to it."""
        try:
            self.backend.trim(self.buffers.stages.values())
        finally:
            self._drop_prompt()
            self._close_runs(self._patch_pass)
            for window in self._windows.values():
                window.close()
            self._windows.clear()
            for sampler in self._samplers.values():
                sampler.close()
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
            if self._prompt is not None and length > self._longest:
                self.backend.trim(self.buffers.stages.values())
            self._longest = max(self._longest, length)
            self._drop_prompt()
            self._prompt = Prompt(self.buffers, length)
        self._prompt(request.prompt)

    def move_to(self, patch: int, rows_apart: bool, start: float = 0.0) -> PatchRun:
        """Move to a patch: say where it stands in the image and in the cache, and who sees whom.

        Args:
            rows_apart: whether conditional and unconditional rows draw noise of their own.
            start: the time at which its sampling starts; 0, or one of the shape's.

        Returns:
            What runs the patch.
        """
        backbone = self.backbone(patch)
        self.buffers.position.move_to(patch)
        backbone.move(self.window)
        key = backbone, self.sampler(rows_apart, start)
        if key not in self._runs:
            self._runs[key] = self._run(*key)
        return self._runs[key]

    def _run(self, backbone: BackbonePass, sampler: PatchSampler) -> PatchRun:
        """What samples behind a pass: in windows, where the loop has them and there is more than one evaluation."""
        alone = min(self.shape.window, sampler.schedule.evaluations) == 1
        return PatchRun(backbone, sampler) if alone else WindowRun(backbone, self.window_sampler(sampler))

    def backbone(self, patch: int) -> BackbonePass:
        """The pass whose result is the condition of a patch: over the prompt, or over the patch before."""
        assert self._prompt is not None, "the loop has not been started"
        return self._prompt.backbone if patch == 0 else self._patch_pass

    def sampler(self, rows_apart: bool, start: float = 0.0) -> PatchSampler:
        """The head bound for rows that share their noise, or for rows that are drawn apart."""
        key = rows_apart, start
        if key not in self._samplers:
            draws = self.shape.rows if rows_apart else self.shape.images
            schedule, modulation = self._schedules[start]
            self._samplers[key] = PatchSampler(self.buffers, modulation, schedule, draws)
        return self._samplers[key]

    def window_sampler(self, sampler: PatchSampler) -> WindowSampler:
        """The windows bound for the draws of a sampler."""
        if sampler not in self._windows:
            window = min(self.shape.window, sampler.schedule.evaluations)
            tolerance = self.bundle.require_window().tolerance
            self._windows[sampler] = WindowSampler(self.buffers, sampler, window, tolerance)
        return self._windows[sampler]

    def _drop_prompt(self) -> None:
        if self._prompt is not None:
            self._close_runs(self._prompt.backbone)
            self.buffers.release(self._prompt.buffers)
            self._prompt = None

    def _close_runs(self, backbone: BackbonePass) -> None:
        """Give back what the device keeps for the patches behind a pass."""
        for key in [key for key in self._runs if key[0] is backbone]:
            self._runs.pop(key).close()
