"""What generating takes of a device's memory, before anything is allocated.

The loop itself runs over a backend that only counts bytes, so weights, cache and tensors are exact. Activations are
those of the graph run node by node, as the manifest has them: an upper bound where a library fuses operators. What
ONNX Runtime takes on CUDA is checked against the plan over the fake CUDA (tests/cuda/test_memory.py).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np

from bitdance_edge.runtime.backends.counting import CountingBackend
from bitdance_edge.runtime.bundle.manifest import Bundle
from bitdance_edge.runtime.bundle.specs import CLASS_CONDITIONAL, StageSpec
from bitdance_edge.runtime.bundle.stage_names import LOOP_STAGES, STAGE_WIDTH, WINDOW_STAGES, StageName
from bitdance_edge.runtime.given import GivenTokens
from bitdance_edge.runtime.image_stage import IMAGE_STAGES, ImageStage
from bitdance_edge.runtime.loop import BoundLoop, TokenRequest, generate_tokens, modulated_at_once

# For kernels, workspaces and graphs, beside tensors and activations. Of engines it has not been measured.
ALLOWANCE = 600_000_000
# Of sessions on CUDA: on an H200 B-16x took 1.21 GB, 0.58 of them before it decoded (bench/results/gpu.md).
SESSIONS_ALLOWANCE = 1_300_000_000
# What an arena holds for each byte that is alive at once: its blocks of small tensors serve no larger ones. In decoder
# and encoder a convolution also has its input again, as cuDNN orders it. Over the fake CUDA at most 1.39 and 1.82.
ARENA_SPREAD, IMAGE_ARENA_SPREAD = 1.5, 2
# Bytes of activations above which more images in one launch of the decoder or encoder are hardly faster: on a CPU, and
# on a GPU, where B-16x's took 14.3 ms an image alone, 7.9 with 8 together and 7.5 with 64 (bench/results/gpu.md).
ENOUGH_AT_ONCE = 256_000_000
ENOUGH_ON_GPU = 1_100_000_000
IN_PLACE_OPSET = 24  # the first whose operators an engine updates the cache in place by
RECORDED_WINDOW = 8  # that the manifest has the activations of the window's stages for
BUFFER_PATCHES = 2  # that allocate: the prompt's, whose rows may be sampled apart, and any other


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How a bundle is run, as far as memory goes.

    Attributes:
        guided: whether each image has two rows, conditional and unconditional.
        files: bytes of what is loaded in place of a stage's ONNX files: its engine.
        queued: whether the backend queues work, as on a GPU; it then has a landing buffer for values that are written
            ahead.
        in_place: whether the cache is updated in place whatever the operators, as by ONNX Runtime.
        arenas: whether each stage keeps memory of its own for activations, as sessions of ONNX Runtime do; otherwise
            the stages of a lane use the same memory in turn, as engines do.
        given: what is known of the images before they are sampled; None: nothing.
        encodes: whether the encoder is loaded too, for an image to start from.
        judged: whether the head is asked how likely given patches are.
        window: head evaluations in one pass.
    """

    guided: bool = True
    files: Mapping[str, int] = field(default_factory=dict)
    queued: bool = True
    in_place: bool = False
    arenas: bool = False
    given: GivenTokens | None = None
    encodes: bool = False
    judged: bool = False
    window: int = 1

    @property
    def loop_stages(self) -> tuple[str, ...]:
        """The stages that the loop loads."""
        return LOOP_STAGES if self.window == 1 else (*LOOP_STAGES, *WINDOW_STAGES)

    def updates_in_place(self, bundle: Bundle) -> bool:
        """Whether the cache is updated in place: by ONNX Runtime always, by engines with the newer operators."""
        return self.in_place or not self.queued or bundle.opset >= IN_PLACE_OPSET


ENGINES = Execution()
SESSIONS = Execution(in_place=True, arenas=True)  # of ONNX Runtime, on CUDA


@dataclass(frozen=True)
class StageNeed:
    """Bytes that one stage takes."""

    stage: str
    weights: int
    cache: int
    tensors: int  # inputs and outputs that no stage before it has bound, other than the cache
    activations: int  # while it runs


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """Bytes for ``images`` at once; the decoder takes ``decoder_images`` of them at a time.

    ``overlapped``: decoding has activations of its own and runs while the loop does; otherwise the two take turns.
    ``arenas``: every stage has activations of its own.
    """

    images: int
    decoder_images: int
    overlapped: bool
    arenas: bool
    stages: tuple[StageNeed, ...]

    @property
    def allowance(self) -> int:
        return SESSIONS_ALLOWANCE if self.arenas else ALLOWANCE

    @property
    def weights(self) -> int:
        return sum(need.weights for need in self.stages)

    @property
    def cache(self) -> int:
        return sum(need.cache for need in self.stages)

    @property
    def tensors(self) -> int:
        return sum(need.tensors for need in self.stages)

    @property
    def activations(self) -> int:
        if self.arenas:
            return sum(need.activations for need in self.stages)
        loop = max((need.activations for need in self.stages if need.stage not in IMAGE_STAGES), default=0)
        decoding = max((need.activations for need in self.stages if need.stage in IMAGE_STAGES), default=0)
        return loop + decoding if self.overlapped else max(loop, decoding)

    @property
    def held(self) -> int:
        """What the generation itself takes, on any device."""
        return self.weights + self.cache + self.tensors + self.activations

    @property
    def total(self) -> int:
        return self.held + self.allowance

    def table(self) -> Iterator[str]:
        parts = ("weights", "cache", "tensors", "activations")
        yield f"{'MB':{STAGE_WIDTH}} {'weights':>10} {'cache':>10} {'tensors':>10} {'activations':>12} {'total':>10}"
        for need in self.stages:
            sizes = [getattr(need, part) for part in parts]
            yield _row(need.stage, sizes, sum(sizes))
        yield _row("total", [getattr(self, part) for part in parts], self.held)
        how = " beside the loop" if self.overlapped else " in turn with the loop, in the same memory"
        how = (
            how if any(need.stage not in IMAGE_STAGES for need in self.stages) else ""
        )  # a tokenizer alone has no loop
        yield f"decoding{how}, {self.decoder_images} image{'s' if self.decoder_images > 1 else ''} at once"
        yield f"with {self.allowance / 1e6:.0f} MB set aside for driver and libraries: {self.total / 1e6:.0f} MB"


def _row(name: str, sizes: list[int], total: int) -> str:
    weights, cache, tensors, activations = (f"{size / 1e6:.1f}" for size in sizes)
    return f"{name:{STAGE_WIDTH}} {weights:>10} {cache:>10} {tensors:>10} {activations:>12} {total / 1e6:10.1f}"


def plan_memory(bundle: Bundle, images: int, how: Execution = ENGINES) -> MemoryPlan:
    """Plan ``images`` of the largest size at once, sampled as the bundle says, decoded beside the loop.

    Text prompts are as long as the bundle takes. A tokenizer alone encodes and decodes that many.
    """
    backend = CountingBackend(bundle, how.files, how.queued, how.updates_in_place(bundle))
    if bundle.model.generates:
        _run_loop(backend, bundle, images, how)
    generating = (*how.loop_stages, StageName.DECODER, *([StageName.ENCODER] if how.encodes else []))
    loaded = [name for name in bundle.stages if name in generating or not bundle.model.generates]
    decoded = decoded_at_once(bundle.stage(StageName.DECODER), images, ENOUGH_ON_GPU if how.queued else ENOUGH_AT_ONCE)
    for name, output in IMAGE_STAGES.items():
        if name in loaded:
            image_stage = ImageStage(backend, bundle, backend.load(name), name, output, decoded)
            image_stage.bind(decoded, bundle.model.largest_size)
    needs = tuple(
        StageNeed(
            stage=name,
            weights=backend.bytes[name, "weights"],
            cache=backend.bytes[name, "cache"],
            tensors=backend.bytes[name, "tensors"],
            activations=_activations(bundle, name, decoded if name in IMAGE_STAGES else images, how),
        )
        for name in loaded
    )
    return MemoryPlan(images=images, decoder_images=decoded, overlapped=True, arenas=how.arenas, stages=needs)


def _run_loop(backend: CountingBackend, bundle: Bundle, images: int, how: Execution) -> None:
    """Run the patches that allocate, over the longest prompt: all, where some are given."""
    model, sampling, size = bundle.model, bundle.sampling, bundle.model.largest_size
    rows = 2 * images if how.guided else images
    patch_shape = (model.tokens_per_step, model.bits)
    given = how.given or GivenTokens.nothing(images, size.patches, patch_shape)
    request = TokenRequest(
        images=images,
        prompt=np.zeros(rows if model.kind == CLASS_CONDITIONAL else (rows, model.prompt_tokens), np.int64),
        padding=np.zeros(rows, np.int64),
        size=size,
        steps=sampling.steps,
        guidance=2.0 if how.guided else 1.0,  # any above 1
        guidance_schedule=sampling.guidance_schedule,
        sampler=sampling.sampler,
        window=how.window,
        given=replace(given, tokens=np.broadcast_to(np.float32(0), (images, *given.tokens.shape[1:]))),
    )
    loop = BoundLoop(backend, bundle, {name: backend.load(name) for name in how.loop_stages}, request.shape)

    def noise(_patch: int, rows_apart: bool) -> np.ndarray:
        return np.broadcast_to(np.float32(0), (sampling.steps + 1, rows if rows_apart else images, *patch_shape))

    patches = generate_tokens(loop, request, noise, (lambda *_: None) if how.judged else None)
    for _ in islice(patches, len(given.strengths) if how.given else BUFFER_PATCHES):
        pass


def _activations(bundle: Bundle, stage: str, images: int, how: Execution) -> int:
    """Bytes that a stage's activations take, with what lies idle between them in an arena."""
    alive = _alive(bundle, stage, images, how)
    if not how.arenas:
        return alive
    return int(alive * (IMAGE_ARENA_SPREAD if stage in IMAGE_STAGES else ARENA_SPREAD))


def _alive(bundle: Bundle, stage: str, images: int, how: Execution) -> int:
    """Bytes of a stage's activations, which the manifest has for one image (two rows)."""
    guided = how.guided
    model, evaluations = bundle.model, bundle.sampling.steps + 1
    one, rows = bundle.stage(stage).activation_bytes, 2 * images if guided else images
    if stage == StageName.BACKBONE:  # recorded for a patch; the prompt is longer
        return one * rows * -(-model.prompt_tokens // model.tokens_per_step) // 2
    if stage == StageName.MODULATION:
        return one * rows * modulated_at_once(rows * model.tokens_per_step, evaluations) // 2
    if stage in WINDOW_STAGES:
        return one * images * how.window // RECORDED_WINDOW
    if stage == StageName.HEAD:
        return one * images * how.window
    return one * (evaluations if stage == StageName.TIME else images)


def decoded_at_once(spec: StageSpec, images: int, enough: int = ENOUGH_AT_ONCE) -> int:
    """How many of ``images`` one launch of decoder or encoder takes: of at most ``enough`` bytes, but one at least."""
    return max(1, min(images, enough // max(1, spec.activation_bytes)))
