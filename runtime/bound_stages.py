"""The stages of the loop bound to buffers: prompt, backbone, modulation and head, and a whole patch as one launch."""

from collections.abc import Iterator, Sequence

import numpy as np

from bitdance_edge.runtime.attention import AttentionWindow
from bitdance_edge.runtime.backends.interface import Buffer, Captured, InOrder, Launch, Memory
from bitdance_edge.runtime.bundle.stage_names import StageName
from bitdance_edge.runtime.loop_buffers import LoopBuffers
from bitdance_edge.runtime.sampler import Schedule


class Prompt:
    """The stage that embeds the ids of all rows, bound for one length of prompt, and the backbone's pass over it."""

    def __init__(self, shared: LoopBuffers, length: int) -> None:
        self.length = length
        (ids,) = (tensor.name for tensor in shared.bundle.stage(StageName.PROMPT).inputs)
        self.ids = shared.allocate(StageName.PROMPT, ids, T=length)
        embeddings = shared.allocate(StageName.PROMPT, "embeddings", T=length)
        self.embed = shared.stages[StageName.PROMPT].bind({ids: self.ids, "embeddings": embeddings})
        self.backbone = BackbonePass(shared, embeddings, often=False)
        self.buffers = [self.ids, embeddings, *self.backbone.buffers]

    def __call__(self, ids: np.ndarray) -> None:
        self.ids.write(ids)
        self.embed()


class Modulation:
    """The stage that modulates the head, bound for each batch of a patch's evaluations; all use the same tables.

    The time embeddings of the schedule are made here once. The last batch is filled up with evaluations at its last
    time, which nobody reads.
    """

    def __init__(self, shared: LoopBuffers, schedule: Schedule) -> None:
        spec = shared.bundle.stage(StageName.MODULATION)
        self.at_once = shared.sizes["M"]
        self.tables = {tensor.name: shared.allocate(StageName.MODULATION, tensor.name) for tensor in spec.outputs}
        times = schedule.times
        batches = -(-len(times) // self.at_once)
        filled = np.pad(times, (0, batches * self.at_once - len(times)), mode="edge").reshape(batches, -1)
        self.launches = [self._bind(shared, batch) for batch in filled]

    def _bind(self, shared: LoopBuffers, batch: np.ndarray) -> Launch:
        times = shared.allocate(StageName.TIME, "times", N=self.at_once)
        embeddings = shared.allocate(StageName.TIME, "time_embeddings", N=self.at_once)
        times.write(batch)
        shared.stages[StageName.TIME].bind({"times": times, "time_embeddings": embeddings})()
        return shared.stages[StageName.MODULATION].bind(
            {"time_embeddings": embeddings, "condition": shared.condition, **self.tables}
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
    """The backbone bound to embeddings ``[R, T, D]`` of one length: the prompt, or a patch.

    Args:
        often: whether an image runs it often enough that its patches are captured.
    """

    def __init__(self, shared: LoopBuffers, embeddings: Buffer, often: bool) -> None:
        self.shared, self.length, self.often = shared, embeddings.shape[1], often
        self._runs: dict[PatchSampler, PatchRun] = {}
        self.positions = shared.allocate(StageName.BACKBONE, "positions", T=self.length)
        self.mask = shared.allocate(StageName.BACKBONE, "mask", T=self.length)
        self.cache_position = shared.allocate(StageName.BACKBONE, "cache_position")
        self.buffers = [self.positions, self.mask, self.cache_position]
        self.launch = shared.stages[StageName.BACKBONE].bind(
            {
                **shared.cache.buffers,
                **shared.position.buffers,
                "embeddings": embeddings,
                "positions": self.positions,
                "mask": self.mask,
                "cache_position": self.cache_position,
                "condition": shared.condition,
            }
        )

    def move(self, window: AttentionWindow) -> None:
        """Let the next launch append to the cache where the last one ended."""
        cache, start = self.shared.cache, self.shared.cache.position
        if start == 0:
            self.positions.write(window.positions(start, self.length))
            self.mask.write(window.mask(start, self.length))
        else:
            self.positions.write(window.patch_positions(start))
            self.mask.write(window.patch_mask(start))
        self.cache_position.write(np.array(start))
        cache.advance(self.length)

    def run(self, sampler: "PatchSampler") -> "PatchRun":
        """The patch whose condition this pass computes, sampled by ``sampler``."""
        if sampler not in self._runs:
            self._runs[sampler] = PatchRun(self, sampler)
        return self._runs[sampler]

    def close(self) -> None:
        """Give back what the device keeps for the patches behind this pass."""
        while self._runs:
            self._runs.popitem()[1].close()


class PatchSampler:
    """The head bound for ``draws`` independent patches, N + 1 launches each, and the stage that embeds the result."""

    def __init__(self, shared: LoopBuffers, modulation: Modulation, schedule: Schedule, draws: int) -> None:
        def allocate(stage: StageName, tensor: str) -> Buffer:
            return shared.allocate(stage, tensor, B=draws)

        evaluations, model = shared.sizes["N"], shared.bundle.model
        self.modulation = modulation
        self.noise = shared.empty((evaluations, draws, model.tokens_per_step, model.bits), "float32", ahead=True)
        self.guidance = allocate(StageName.HEAD, "guidance")
        self.tokens = allocate(StageName.TOKENS, "tokens")
        rows = allocate(StageName.HEAD, "rows")
        rows.write(np.arange(shared.sizes["R"]) % draws)
        coefficients = shared.empty((evaluations, 3), "float32")
        coefficients.write(schedule.coefficients)
        # Each evaluation reads one and writes the other.
        states = [allocate(StageName.HEAD, "x_next"), allocate(StageName.HEAD, "x_next")]
        self.x = states[(evaluations - 1) % 2]
        self.evaluate = [
            shared.stages[StageName.HEAD].bind(
                {
                    "x": self.noise[0] if k == 0 else states[(k - 1) % 2],
                    "x_next": states[k % 2],
                    **modulation.of(k),
                    "coefficients": coefficients[k],
                    "guidance": self.guidance,
                    # The last evaluation adds no noise (C = 0); any draw serves as its input.
                    "noise": self.noise[min(k + 1, evaluations - 1)],
                    "rows": rows,
                }
            )
            for k in range(evaluations)
        ]
        self.embed = shared.stages[StageName.TOKENS].bind(
            {
                **shared.position.buffers,
                "x": self.x,
                "rows": rows,
                "tokens": self.tokens,
                "embeddings": shared.embeddings,
            }
        )

    def prepare(self, noise: np.ndarray, guidance: float) -> None:
        """Set what the evaluations of the next patch draw from: ``noise`` float32 ``[N + 1, draws, P, C]``."""
        self.noise.write(noise)
        self.guidance.write(np.array(guidance))

    def accept(self, tokens: np.ndarray) -> None:
        """Take tokens ``[B, P, C]`` as given, for all rows of an image."""
        self.x.write(np.tile(tokens, (self.x.shape[0] // tokens.shape[0], 1, 1)))


class PatchRun:
    """A whole patch over buffers that do not move: backbone, head evaluations or given tokens, and their embedding.

    ``tokens`` float32 ``[draws, P, C]`` is the buffer of its result.
    """

    def __init__(self, backbone: BackbonePass, sampler: PatchSampler) -> None:
        self.backbone, self.sampler, self.tokens = backbone, sampler, sampler.tokens
        self._sampled: Captured | None = None

    def sample(self, noise: np.ndarray, guidance: float) -> None:
        """Launch the patch with ``noise`` float32 ``[N + 1, draws, P, C]``."""
        self.sampler.prepare(noise, guidance)
        self.launch()

    def accept(self, tokens: np.ndarray) -> None:
        """Launch the patch with tokens ``[B, P, C]`` that are given, so that the head need not run."""
        self.sampler.accept(tokens)
        self.backbone.launch()
        self.sampler.embed()

    def launch(self) -> None:
        """Launch the patch with the noise and guidance that its sampler has."""
        if self._sampled is None:
            backbone, sampler = self.backbone, self.sampler
            evaluations = sampler.modulation.interleaved(sampler.evaluate)
            steps = [backbone.launch, *evaluations, sampler.embed]
            self._sampled = backbone.shared.backend.capture(steps) if backbone.often else InOrder(steps)
        self._sampled()

    def close(self) -> None:
        if self._sampled is not None:
            self._sampled.close()
            self._sampled = None
