"""The stages of the loop that are bound once for all patches: prompt, backbone and modulation."""

from collections.abc import Iterator, Sequence

import numpy as np

from bitdance_edge.runtime.attention import AttentionWindow
from bitdance_edge.runtime.backends.interface import Buffer, Launch, Memory
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
    """The stage that modulates the head, bound for each batch of a patch's evaluations, to the loop's tables in turn.

    The time embeddings of the schedule are made here once. The last batch is filled up with evaluations at its last
    time, which nobody reads.
    """

    def __init__(self, shared: LoopBuffers, schedule: Schedule) -> None:
        self.at_once, self.tables = shared.sizes["M"], shared.modulations
        times = schedule.times
        batches = -(-len(times) // self.at_once)
        filled = np.pad(times, (0, batches * self.at_once - len(times)), mode="edge").reshape(batches, -1)
        self.launches = [self._bind(shared, number, batch) for number, batch in enumerate(filled)]

    def _bind(self, shared: LoopBuffers, number: int, batch: np.ndarray) -> Launch:
        times = shared.allocate(StageName.TIME, "times", N=self.at_once)
        embeddings = shared.allocate(StageName.TIME, "time_embeddings", N=self.at_once)
        times.write(batch)
        shared.stages[StageName.TIME].bind({"times": times, "time_embeddings": embeddings})()
        return shared.stages[StageName.MODULATION].bind(
            {"time_embeddings": embeddings, "condition": shared.condition, **self._batch(number)}
        )

    def _batch(self, number: int) -> dict[str, Memory]:
        return {name: table[number % table.shape[0]] for name, table in self.tables.items()}

    def of(self, evaluation: int) -> dict[str, Memory]:
        """What an evaluation of the head reads."""
        batch = self._batch(evaluation // self.at_once)
        return {name: table[evaluation % self.at_once] for name, table in batch.items()}

    def interleaved(self, evaluations: Sequence[Launch]) -> Iterator[Launch]:
        """The launches of a patch's evaluations, each batch of them behind the one that modulates it."""
        for k, evaluate in enumerate(evaluations):
            if k % self.at_once == 0:
                yield self.launches[k // self.at_once]
            yield evaluate


class BackbonePass:
    """The backbone bound to embeddings ``[R, T, D]`` of one length: the prompt, or a patch.

    Args:
        often: whether an image runs it often enough that it is captured together with what follows it.
    """

    def __init__(self, shared: LoopBuffers, embeddings: Buffer, often: bool) -> None:
        self.shared, self.length, self.often = shared, embeddings.shape[1], often
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
