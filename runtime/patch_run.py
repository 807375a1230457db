"""A whole patch over buffers that do not move: backbone, evaluations of the head or given tokens, their embedding."""

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from bitdance_edge.runtime.backends.interface import Buffer, Captured, InOrder, Launch, Pending
from bitdance_edge.runtime.bound_stages import BackbonePass, Modulation
from bitdance_edge.runtime.bundle.stage_names import StageName
from bitdance_edge.runtime.loop_buffers import LoopBuffers
from bitdance_edge.runtime.sampler import Schedule


class PatchSampler:
    """The head bound for ``draws`` independent patches, one launch an evaluation, and the stage that embeds the result.

    Args:
        schedule: when the head is evaluated; from a start after time 0, given tokens are mixed with the noise.
    """

    def __init__(self, shared: LoopBuffers, modulation: Modulation, schedule: Schedule, draws: int) -> None:
        self.shared, self.modulation, self.schedule, self.independent = shared, modulation, schedule, draws
        self.tokens = self._allocate(StageName.TOKENS, "tokens")
        self.rows = self._allocate(StageName.HEAD, "rows")
        self.rows.write(np.arange(shared.sizes["R"]) % draws)
        self.x = self._allocate(StageName.HEAD, "x_next")  # the result
        self.embed = shared.stages[StageName.TOKENS].bind(
            {
                **shared.position.buffers,
                "x": self.x,
                "rows": self.rows,
                "tokens": self.tokens,
                "embeddings": shared.embeddings,
            }
        )
        self._held: Buffer | None = None
        self._expected: tuple[Buffer, Launch] | None = None
        self._prompts = 0  # that patches have followed
        self._after_prompt: Captured = InOrder([])

    def _allocate(self, stage: StageName, tensor: str) -> Buffer:
        return self.shared.allocate(stage, tensor, B=self.independent)

    # What single evaluations take is allocated with the first of them: the windowed sampler makes none.

    @cached_property
    def noise(self) -> Buffer:
        return self.shared.empty((self.schedule.evaluations, *self.x.shape), "float32", ahead=True)

    @cached_property
    def guidance(self) -> Buffer:
        return self._allocate(StageName.HEAD, "guidance")

    @cached_property
    def coefficients(self) -> Buffer:
        coefficients = self.shared.empty(self.schedule.coefficients.shape, "float32")
        coefficients.write(self.schedule.coefficients)
        return coefficients

    @cached_property
    def states(self) -> list[Buffer]:
        """Each evaluation reads one and writes the other, the last one the result."""
        other = self._allocate(StageName.HEAD, "x_next")
        return [self.x, other] if self.schedule.evaluations % 2 else [other, self.x]

    @cached_property
    def evaluate(self) -> list[Launch]:
        """The evaluations of the head, one after the other."""
        return [self._evaluation(k, k, self.states[k % 2]) for k in range(self.schedule.evaluations)]

    def steps(self, evaluations: Sequence[Launch]) -> list[Launch]:
        """What follows the pass before a patch: modulation, evaluations of the head, the embedding of the result."""
        return [*self.modulation.interleaved(evaluations), self.embed]

    def after_prompt(self) -> None:
        """Launch the evaluations and the embedding behind a pass over a prompt, which is not captured with them.

        Prompts differ in length. What follows them is captured when a second image asks for it: one alone has it once.
        """
        self._prompts += 1
        if self._prompts <= 2:
            steps = self.steps(self.evaluate)
            self._after_prompt = InOrder(steps) if self._prompts == 1 else self.shared.backend.capture(steps)
        self._after_prompt()

    def close(self) -> None:
        """Give back what the device keeps for the patches behind prompts."""
        self._after_prompt.close()

    def prepare(self, noise: np.ndarray, guidance: float, tokens: np.ndarray | None = None) -> None:
        """Set what the evaluations of the next patch draw from; the arguments are those of ``draws``."""
        self.noise.write(self.draws(noise, tokens))
        self.guidance.write(np.array(guidance))

    def draws(self, noise: np.ndarray, tokens: np.ndarray | None) -> np.ndarray:
        """The start of a patch, then what each step draws, float32 ``[evaluations, draws, P, C]``.

        Args:
            noise: float32 ``[N + 1, draws, P, C]``, of which a later start uses the first.
            tokens: float32 ``[B, P, C]``, mixed with noise where the schedule does not start at time 0.
        """
        noise, start = noise[: self.schedule.evaluations], self.schedule.times[0]
        if start > 0 and tokens is not None:
            noise = noise.copy()
            noise[0] = (1 - start) * noise[0] + start * self._for_draws(tokens)
        return noise

    def known_states(self, noise: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """What known ``tokens`` ``[B, P, C]`` are after each evaluation, float32 ``[evaluations, draws, P, C]``.

        That is the mix of noise and tokens at that time; after the last, the tokens themselves.
        """
        time = self.schedule.reached[:, None, None, None]
        fresh = self.schedule.coefficients[:, 2] != 0  # a sampler without noise has its start to mix with
        draws = np.stack([noise[k + 1 if fresh[k] else 0] for k in range(len(fresh))])
        return (1 - time) * draws + time * self._for_draws(tokens)

    def accept(self, tokens: np.ndarray) -> None:
        """Take tokens ``[B, P, C]`` as given, for all rows of an image."""
        self.x.write(self._for_draws(tokens))

    def holding(self, noise: np.ndarray, tokens: np.ndarray, held: np.ndarray) -> list[Launch]:
        """The evaluations of a patch some of whose tokens are known, bool ``[P]``, and kept to their own noisy path.

        After each evaluation they are set to what they are at that time (RePaint, Lugmayr et al., arXiv 2201.09865,
        algorithm 1).
        """
        if self._held is None:
            self._held = self.shared.empty(self.noise.shape, "float32", ahead=True)
        self._held.write(self.known_states(noise, tokens))
        rows = np.broadcast_to(held, self.noise.shape[1:3])  # [draws, P]
        overwrite = self.shared.backend.overwrite
        return [
            InOrder([evaluate, overwrite(self.states[k % 2], self._held[k], rows)])
            for k, evaluate in enumerate(self.evaluate)
        ]

    def expect(self, noise: np.ndarray) -> Pending:
        """Launch one evaluation at time 0 and fetch what it expects of a patch's bits, float32 ``[draws, P, C]``.

        With noise for its input, the head says what the patches before let it expect: the mean of each bit.
        """
        if self._expected is None:
            expected = self.shared.empty(self.x.shape, "float32")
            # A = 0, B = 1, C = 0: the clean tokens, as in the last evaluation.
            self._expected = expected, self._evaluation(0, self.schedule.evaluations - 1, expected)
        expected, evaluate = self._expected
        self.prepare(noise, 1.0)
        self.modulation.launches[0]()
        evaluate()
        return expected.fetch()

    def _evaluation(self, number: int, step: int, result: Buffer) -> Launch:
        """An evaluation of the head at one of the schedule's times, with the coefficients of another."""
        return self.shared.stages[StageName.HEAD].bind(
            {
                "x": self.noise[0] if number == 0 else self.states[(number - 1) % 2],
                "x_next": result,
                **self.modulation.of(number),
                "coefficients": self.coefficients[step],
                "guidance": self.guidance,
                # The last evaluation adds no noise (C = 0); any draw serves as its input.
                "noise": self.noise[min(step + 1, self.schedule.evaluations - 1)],
                "rows": self.rows,
            }
        )

    def _for_draws(self, tokens: np.ndarray) -> np.ndarray:
        """Tokens ``[B, P, C]`` for all draws: those of an image where its rows are drawn apart."""
        return np.tile(tokens, (self.x.shape[0] // tokens.shape[0], 1, 1))


class PatchRun:
    """A patch behind one pass of the backbone; ``tokens`` float32 ``[draws, P, C]`` is the buffer of its result."""

    def __init__(self, backbone: BackbonePass, sampler: PatchSampler) -> None:
        self.backbone, self.sampler, self.tokens = backbone, sampler, sampler.tokens
        self._sampled: Captured | None = None

    def sample(
        self,
        noise: np.ndarray,
        guidance: float,
        tokens: np.ndarray | None = None,
        held: np.ndarray | None = None,
    ) -> None:
        """Launch the patch.

        Args:
            noise: float32 ``[N + 1, draws, P, C]``.
            tokens: float32 ``[B, P, C]`` of a patch that is varied, or known in part.
            held: which of them are kept, bool ``[P]``.
        """
        self.sampler.prepare(noise, guidance, tokens)
        if tokens is None or held is None or not held.any():
            self.launch()
        else:
            # Which tokens are held differs from patch to patch: a captured one would not be used again.
            held_steps = self.sampler.steps(self.sampler.holding(noise, tokens, held))
            InOrder([self.backbone.launch, *held_steps])()

    def accept(self, tokens: np.ndarray, noise: np.ndarray | None = None) -> Pending | None:
        """Launch the patch with tokens ``[B, P, C]`` that are given, so that the head need not run.

        Returns:
            What the head expected of their bits, as ``PatchSampler.expect``; None without ``noise`` for it.
        """
        self.backbone.launch()
        expected = None if noise is None else self.sampler.expect(noise)
        self.sampler.accept(tokens)
        self.sampler.embed()
        return expected

    def launch(self) -> None:
        """Launch the patch with the noise and guidance that its sampler has."""
        if not self.backbone.often:
            self.backbone.launch()
            self.sampler.after_prompt()
            return
        if self._sampled is None:
            steps = [self.backbone.launch, *self.sampler.steps(self.sampler.evaluate)]
            self._sampled = self.backbone.shared.backend.capture(steps)
        self._sampled()

    def close(self) -> None:
        """Give back what the device keeps for the patch."""
        if self._sampled is not None:
            self._sampled.close()
            self._sampled = None
