"""The generation loop: prompt, then a backbone step and N + 1 head evaluations a patch.

Knows tokens, nothing of images, seeds or files. R rows run through the backbone: B images, twice that under guidance
(conditional rows first). Everything a patch needs is allocated and bound once, before the first patch; what changes
from patch to patch (positions, mask, guidance, noise) is a value in a buffer, so that a backend can capture the patch.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bitdance_edge.runtime.attention import AttentionWindow
from bitdance_edge.runtime.backends.interface import Backend, Buffer, Captured, InOrder, Launch, Memory, Pending, Stage
from bitdance_edge.runtime.bundle.manifest import Bundle
from bitdance_edge.runtime.bundle.specs import ImageSize
from bitdance_edge.runtime.cache import KVCache
from bitdance_edge.runtime.sampler import Schedule, patch_guidance

# (patch, rows_apart) -> float32 [steps + 1, B, P, C], or [steps + 1, R, P, C] where conditional and unconditional rows
# draw apart
NoiseSource = Callable[[int, bool], np.ndarray]

LOOP_STAGES = ("prompt", "tokens", "time", "backbone", "modulation", "head")
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
    """How many of a patch's head evaluations are modulated together, with ``rows`` rows each (R * P)."""
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
    patches = request.size.patches
    asked: deque[Pending] = deque()
    for patch in range(patches):
        guidance = patch_guidance(request.guidance, request.guidance_schedule, patch, patches)
        rows_apart = loop.shape.guided and guidance == 1
        sampler = loop.sampler(rows_apart)
        loop.move_to(patch)
        if given := patch < request.prefix.shape[1]:
            sampler.accept(request.prefix[:, patch])
        else:
            sampler.prepare(noise(patch, rows_apart), guidance)
        loop.launch(patch, sampler, given)()
        asked.append(sampler.tokens.fetch())
        if len(asked) > loop.backend.run_ahead:
            yield asked.popleft().wait()[: request.images]
    for left in asked:
        yield left.wait()[: request.images]


class BoundLoop:
    """The buffers that stages share, and the stages bound to them, for one request after another of the same shape."""

    def __init__(self, backend: Backend, bundle: Bundle, stages: Mapping[str, Stage], shape: LoopShape) -> None:
        self.backend, self.bundle, self.stages, self.shape = backend, bundle, stages, shape
        at_once = modulated_at_once(shape.rows * bundle.model.tokens_per_step, shape.steps + 1)
        self.sizes = {"R": shape.rows, "N": shape.steps + 1, "M": at_once}
        self.schedule = Schedule.of(shape.sampler, shape.steps, bundle.sampling.time_shift)
        self._owned: list[Buffer] = []
        self._prompt: Prompt | None = None
        self._patch_pass: BackbonePass | None = None
        self._samplers: dict[bool, PatchSampler] = {}
        self._launches: dict[tuple[BackbonePass, PatchSampler, bool], Captured] = {}
        try:
            self.cache = KVCache(backend, bundle, shape.rows)
            self._owned += self.cache.buffers.values()
            self.place = Place(self)
            self.condition = self.allocate("backbone", "condition")
            self.embeddings = self.allocate("tokens", "embeddings")
            self.modulation = Modulation(self)
            self._patch_pass = BackbonePass(self, self.embeddings)
        except BaseException:
            self.free()
            raise

    def allocate(self, stage: str, tensor: str, **sizes: int) -> Buffer:
        """Memory for one input or output of a stage, with its named dimensions as in this loop."""
        spec = self.bundle.stage(stage)
        found = next(item for item in (*spec.inputs, *spec.outputs) if item.name == tensor)
        return self.empty(found.sized({**self.sizes, **sizes}), found.dtype)

    def empty(self, shape: tuple[int, ...], dtype: str, *, ahead: bool = False) -> Buffer:
        self._owned.append(self.backend.empty(shape, dtype, ahead=ahead))
        return self._owned[-1]

    def free(self) -> None:
        """Give the memory back, and what was bound to it."""
        while self._launches:
            self._launches.popitem()[1].close()
        self._samplers.clear()
        self._prompt = self._patch_pass = None
        while self._owned:
            self._owned.pop().free()

    def start(self, request: TokenRequest) -> None:
        """Embed the prompt of another request; one of another length gets buffers of its length."""
        self.cache.reset()
        self.window = AttentionWindow(self.bundle.model.tokens_per_step, self.cache.length, request.padding)
        self.place.begin(request.size)
        length = request.prompt.shape[-1]
        if self._prompt is None or self._prompt.length != length:
            if self._prompt is not None:
                self._forget(self._prompt)
            self._prompt = Prompt(self, length)
        self._prompt(request.prompt)

    def move_to(self, patch: int) -> None:
        """Say where the next launch stands in the image, where it appends to the cache, and who sees whom."""
        self.place.move_to(patch)
        self.backbone(patch).move()

    def backbone(self, patch: int) -> "BackbonePass":
        """The pass whose result is the condition of a patch: over the prompt, or over the patch before."""
        assert self._prompt is not None, "the loop has not been started"
        assert self._patch_pass is not None
        return self._prompt.backbone if patch == 0 else self._patch_pass

    def sampler(self, rows_apart: bool) -> "PatchSampler":
        """The head bound for rows that share their noise, or for rows that are drawn apart."""
        if rows_apart not in self._samplers:
            self._samplers[rows_apart] = PatchSampler(self, self.shape.rows if rows_apart else self.shape.images)
        return self._samplers[rows_apart]

    def launch(self, patch: int, sampler: "PatchSampler", given: bool) -> Captured:
        """All of a patch: backbone, head evaluations unless the tokens are given, and the embedding of the tokens."""
        key = (self.backbone(patch), sampler, given)
        if key not in self._launches:
            evaluations = () if given else self.modulation.interleaved(sampler.evaluate)
            steps = [self.backbone(patch).launch, *evaluations, sampler.embed]
            often = patch > 0 and not given
            self._launches[key] = self.backend.capture(steps) if often else InOrder(steps)
        return self._launches[key]

    def _forget(self, prompt: "Prompt") -> None:
        for key in [key for key in self._launches if key[0] is prompt.backbone]:
            self._launches.pop(key).close()
        for buffer in prompt.buffers:
            self._owned.remove(buffer)
            buffer.free()


class Prompt:
    """The stage that embeds the ids of all rows, bound for one length of prompt, and the backbone's pass over it."""

    def __init__(self, loop: BoundLoop, length: int) -> None:
        self.length = length
        (ids,) = (tensor.name for tensor in loop.bundle.stage("prompt").inputs)
        self.ids = loop.allocate("prompt", ids, T=length)
        embeddings = loop.allocate("prompt", "embeddings", T=length)
        self.embed = loop.stages["prompt"].bind({ids: self.ids, "embeddings": embeddings})
        self.backbone = BackbonePass(loop, embeddings)
        self.buffers = [self.ids, embeddings, *self.backbone.buffers]

    def __call__(self, ids: np.ndarray) -> None:
        self.ids.write(ids)
        self.embed()


class Place:
    """Where the current patch stands in the image, for the stages that ask."""

    def __init__(self, loop: BoundLoop) -> None:
        spec = loop.bundle.stage("backbone")
        names = [tensor.name for tensor in spec.inputs if tensor.name in ("patch_index", "patches_across")]
        self.buffers = {name: loop.allocate("backbone", name) for name in names}

    def begin(self, size: ImageSize) -> None:
        if "patches_across" in self.buffers:
            self.buffers["patches_across"].write(np.array(size.patches_across))

    def move_to(self, patch: int) -> None:
        self.buffers["patch_index"].write(np.array(patch))


class Modulation:
    """The stage that modulates the head, bound for each batch of a patch's evaluations; all use the same tables.

    The time embeddings of the schedule are made here once. The last batch is filled up with evaluations at its last
    time, which nobody reads.
    """

    def __init__(self, loop: BoundLoop) -> None:
        spec = loop.bundle.stage("modulation")
        self.at_once = loop.sizes["M"]
        self.tables = {tensor.name: loop.allocate("modulation", tensor.name) for tensor in spec.outputs}
        times = loop.schedule.times
        batches = -(-len(times) // self.at_once)
        filled = np.pad(times, (0, batches * self.at_once - len(times)), mode="edge").reshape(batches, -1)
        self.launches = [self._bind(loop, batch) for batch in filled]

    def _bind(self, loop: BoundLoop, batch: np.ndarray) -> Launch:
        times = loop.allocate("time", "times", N=self.at_once)
        embeddings = loop.allocate("time", "time_embeddings", N=self.at_once)
        times.write(batch)
        loop.stages["time"].bind({"times": times, "time_embeddings": embeddings})()
        return loop.stages["modulation"].bind(
            {"time_embeddings": embeddings, "condition": loop.condition, **self.tables}
        )

    def of(self, evaluation: int) -> dict[str, Memory]:
        """What an evaluation of the head reads."""
        return {name: table[evaluation % self.at_once] for name, table in self.tables.items()}

    def interleaved(self, evaluations: Sequence[Launch]) -> Iterator[Launch]:
        """The launches of a patch's evaluations, each batch of them behind the one that modulates it."""
        for k, evaluate in enumerate(evaluations):
            if k % self.at_once == 0:
                yield self.launches[k // self.at_once]
            yield evaluate


class BackbonePass:
    """The backbone bound to embeddings ``[R, T, D]`` of one length: the prompt, or a patch."""

    def __init__(self, loop: BoundLoop, embeddings: Buffer) -> None:
        self.loop, self.length = loop, embeddings.shape[1]
        self.positions = loop.allocate("backbone", "positions", T=self.length)
        self.mask = loop.allocate("backbone", "mask", T=self.length)
        self.cache_position = loop.allocate("backbone", "cache_position")
        self.buffers = [self.positions, self.mask, self.cache_position]
        self.launch = loop.stages["backbone"].bind(
            {
                **loop.cache.buffers,
                **loop.place.buffers,
                "embeddings": embeddings,
                "positions": self.positions,
                "mask": self.mask,
                "cache_position": self.cache_position,
                "condition": loop.condition,
            }
        )

    def move(self) -> None:
        """Let the next launch append to the cache where the last one ended."""
        cache, window, start = self.loop.cache, self.loop.window, self.loop.cache.position
        if start == 0:
            self.positions.write(window.positions(start, self.length))
            self.mask.write(window.mask(start, self.length))
        else:
            self.positions.write(window.patch_positions(start))
            self.mask.write(window.patch_mask(start))
        self.cache_position.write(np.array(start))
        cache.advance(self.length)


class PatchSampler:
    """The head bound for ``draws`` independent patches, N + 1 launches each, and the stage that embeds the result."""

    def __init__(self, loop: BoundLoop, draws: int) -> None:
        def allocate(stage: str, tensor: str) -> Buffer:
            return loop.allocate(stage, tensor, B=draws)

        evaluations = loop.shape.steps + 1
        model = loop.bundle.model
        self.noise = loop.empty((evaluations, draws, model.tokens_per_step, model.bits), "float32", ahead=True)
        self.guidance = allocate("head", "guidance")
        self.tokens = allocate("tokens", "tokens")
        rows = allocate("head", "rows")
        rows.write(np.arange(loop.shape.rows) % draws)
        coefficients = loop.empty((evaluations, 3), "float32")
        coefficients.write(loop.schedule.coefficients)
        states = [allocate("head", "x_next"), allocate("head", "x_next")]  # each evaluation reads one, writes the other
        self.x = states[(evaluations - 1) % 2]
        self.evaluate = [
            loop.stages["head"].bind(
                {
                    "x": self.noise[0] if k == 0 else states[(k - 1) % 2],
                    "x_next": states[k % 2],
                    **loop.modulation.of(k),
                    "coefficients": coefficients[k],
                    "guidance": self.guidance,
                    # The last evaluation adds no noise (C = 0); any draw serves as its input.
                    "noise": self.noise[min(k + 1, evaluations - 1)],
                    "rows": rows,
                }
            )
            for k in range(evaluations)
        ]
        self.embed = loop.stages["tokens"].bind(
            {
                **loop.place.buffers,
                "x": self.x,
                "rows": rows,
                "tokens": self.tokens,
                "embeddings": loop.embeddings,
            }
        )

    def prepare(self, noise: np.ndarray, guidance: float) -> None:
        """What the evaluations of the next patch are to draw from: ``noise`` ``[N + 1, draws, P, C]``."""
        self.noise.write(noise)
        self.guidance.write(np.array(guidance))

    def accept(self, tokens: np.ndarray) -> None:
        """Take tokens ``[B, P, C]`` as given, for all rows of an image."""
        self.x.write(np.tile(tokens, (self.x.shape[0] // tokens.shape[0], 1, 1)))
