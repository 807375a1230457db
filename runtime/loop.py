"""The generation loop: prompt, then a backbone step and N + 1 head evaluations a patch.

Knows tokens, nothing of images, seeds or files. R rows run through the backbone: B images, twice that under guidance
(conditional rows first). Everything a patch needs is allocated and bound once, before the first patch.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from bitdance_edge.runtime.attention import AttentionWindow
from bitdance_edge.runtime.backend import Backend, Buffer, Stage
from bitdance_edge.runtime.bundle import Bundle, ImageSize
from bitdance_edge.runtime.cache import KVCache
from bitdance_edge.runtime.sampler import Schedule, patch_guidance

# (patch, rows_apart) -> float32 [steps + 1, B, P, C], or [steps + 1, R, P, C] where conditional and unconditional rows
# draw apart
NoiseSource = Callable[[int, bool], np.ndarray]


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

    @property
    def rows(self) -> int:
        return len(self.prompt)

    @property
    def guided(self) -> bool:
        return self.rows > self.images


def generate_tokens(
    backend: Backend, bundle: Bundle, stages: Mapping[str, Stage], request: TokenRequest, noise: NoiseSource
) -> Iterator[np.ndarray]:
    """Generate patch after patch; yields the tokens of each, float32 ``[B, P, C]`` of -1 and +1.

    Under the linear schedule the first patch has guidance 1: conditional and unconditional rows are then sampled
    apart, as the reference does, and only the conditional ones belong to the image.
    """
    loop = BoundLoop(backend, bundle, stages, request)
    patches = request.size.patches
    for patch in range(patches):
        guidance = patch_guidance(request.guidance, request.guidance_schedule, patch, patches)
        rows_apart = request.guided and guidance == 1
        loop.backbone(patch)
        sampler = loop.sampler(rows_apart)
        if patch < request.prefix.shape[1]:
            sampler.accept(request.prefix[:, patch])
        else:
            sampler.sample(noise(patch, rows_apart), guidance)
        sampler.embed()
        yield sampler.tokens.read()[: request.images]


class BoundLoop:
    """The buffers that stages share, and the stages bound to them."""

    def __init__(self, backend: Backend, bundle: Bundle, stages: Mapping[str, Stage], request: TokenRequest) -> None:
        self.backend, self.bundle, self.stages, self.request = backend, bundle, stages, request
        self.sizes = {"R": request.rows, "N": request.steps + 1}
        self.schedule = Schedule.euler_maruyama(request.steps, bundle.sampling.time_shift)
        self.cache = KVCache(backend, bundle, request.rows)
        self.place = Place(self)
        self.condition = self.allocate("backbone", "condition")
        self.embeddings = self.allocate("tokens", "embeddings")
        self.time_embeddings = self._embed_times()
        self._prompt_pass = BackbonePass(self, self._embed_prompt())
        self._patch_pass = BackbonePass(self, self.embeddings)
        self._samplers: dict[bool, PatchSampler] = {}

    def allocate(self, stage: str, tensor: str, **sizes: int) -> Buffer:
        """Memory for one input or output of a stage, with its named dimensions as in this request."""
        spec = self.bundle.stage(stage)
        found = next(item for item in (*spec.inputs, *spec.outputs) if item.name == tensor)
        return self.backend.empty(found.sized({**self.sizes, **sizes}), found.dtype)

    def backbone(self, patch: int) -> None:
        """Run the prompt or the patch before this one; the head's condition is then in its buffer."""
        run = self._prompt_pass if patch == 0 else self._patch_pass
        self.place.move_to(patch)
        run()

    def sampler(self, rows_apart: bool) -> "PatchSampler":
        """The head bound for rows that share their noise, or for rows that are drawn apart."""
        if rows_apart not in self._samplers:
            self._samplers[rows_apart] = PatchSampler(self, self.request.rows if rows_apart else self.request.images)
        return self._samplers[rows_apart]

    def _embed_times(self) -> Buffer:
        times, embeddings = self.allocate("time", "times"), self.allocate("time", "time_embeddings")
        times.write(self.schedule.times)
        self.stages["time"].bind({"times": times, "time_embeddings": embeddings})()
        return embeddings

    def _embed_prompt(self) -> Buffer:
        (ids,) = (tensor.name for tensor in self.bundle.stage("prompt").inputs)
        length = self.request.prompt.shape[-1]
        prompt, embeddings = self.allocate("prompt", ids, T=length), self.allocate("prompt", "embeddings", T=length)
        prompt.write(self.request.prompt)
        self.stages["prompt"].bind({ids: prompt, "embeddings": embeddings})()
        return embeddings


class Place:
    """Where the current patch stands in the image, for the stages that ask."""

    def __init__(self, loop: BoundLoop) -> None:
        spec = loop.bundle.stage("backbone")
        names = [tensor.name for tensor in spec.inputs if tensor.name in ("patch_index", "patches_across")]
        self.buffers = {name: loop.allocate("backbone", name) for name in names}
        if "patches_across" in self.buffers:
            self.buffers["patches_across"].write(np.array(loop.request.size.patches_across))

    def move_to(self, patch: int) -> None:
        self.buffers["patch_index"].write(np.array(patch))


class BackbonePass:
    """The backbone bound to embeddings ``[R, T, D]`` of one length: the prompt, or a patch."""

    def __init__(self, loop: BoundLoop, embeddings: Buffer) -> None:
        self.length = embeddings.shape[1]
        self.cache = loop.cache
        self.window = AttentionWindow(loop.bundle.model.tokens_per_step, loop.cache.length, loop.request.padding)
        self.positions = loop.allocate("backbone", "positions", T=self.length)
        self.mask = loop.allocate("backbone", "mask", T=self.length)
        self.cache_position = loop.allocate("backbone", "cache_position")
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

    def __call__(self) -> None:
        """Append to the cache and leave the condition of the last P positions in its buffer."""
        start = self.cache.position
        self.positions.write(self.window.positions(start, self.length))
        self.mask.write(self.window.mask(start, self.length))
        self.cache_position.write(np.array(start))
        self.launch()
        self.cache.advance(self.length)


class PatchSampler:
    """The head bound for ``draws`` independent patches, N + 1 launches each, and the stage that embeds the result."""

    def __init__(self, loop: BoundLoop, draws: int) -> None:
        def allocate(stage: str, tensor: str) -> Buffer:
            return loop.allocate(stage, tensor, B=draws)

        evaluations = loop.request.steps + 1
        model = loop.bundle.model
        self.noise = loop.backend.empty((evaluations, draws, model.tokens_per_step, model.bits), "float32")
        self.guidance = allocate("head", "guidance")
        self.tokens = allocate("tokens", "tokens")
        rows = allocate("head", "rows")
        rows.write(np.arange(loop.request.rows) % draws)
        coefficients = loop.backend.empty((evaluations, 3), "float32")
        coefficients.write(loop.schedule.coefficients)
        states = [allocate("head", "x_next"), allocate("head", "x_next")]  # each evaluation reads one, writes the other
        self.x = states[(evaluations - 1) % 2]
        self.evaluate = [
            loop.stages["head"].bind(
                {
                    "x": self.noise[0] if k == 0 else states[(k - 1) % 2],
                    "x_next": states[k % 2],
                    "condition": loop.condition,
                    "time_embedding": loop.time_embeddings[k],
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

    def sample(self, noise: np.ndarray, guidance: float) -> None:
        """Draw the patch from ``noise`` ``[N + 1, draws, P, C]``; the prediction is then in ``x``."""
        self.noise.write(noise)
        self.guidance.write(np.array(guidance))
        for evaluate in self.evaluate:
            evaluate()

    def accept(self, tokens: np.ndarray) -> None:
        """Take tokens ``[B, P, C]`` as given, for all rows of an image."""
        self.x.write(np.tile(tokens, (self.x.shape[0] // tokens.shape[0], 1, 1)))
