"""A patch sampled in sweeps: in each, the head evaluates a window of times at once, and the recurrence is redone.

``model/window.py`` says why that gives what one evaluation after the other gives. Here its parts are launches over
buffers that do not move: the head with the window's times for draws of its own; ``extrapolate``, how its predictions
follow the states; ``advance``, one step, launched 2 * W - 1 times; ``settle``, how far the states have settled, and the
next window. Each image is as far as it is: those that have reached the end stay there.
"""

from dataclasses import dataclass

import numpy as np

from bitdance_edge.runtime.backends.interface import Buffer, Captured, InOrder, Launch, Memory
from bitdance_edge.runtime.bound_stages import BackbonePass
from bitdance_edge.runtime.bundle.signatures import MODULATION, TABLE
from bitdance_edge.runtime.bundle.stage_names import StageName
from bitdance_edge.runtime.loop_buffers import LoopBuffers
from bitdance_edge.runtime.patch_run import PatchRun, PatchSampler

NOTHING = -1  # what is reached before the first sweep: a step in front of the first evaluation, which keeps the start


@dataclass(frozen=True)
class Window:
    """The states of a window ``[W, R, P, C]``, the head's predictions there, and where it begins, ``[B]``.

    There are two, of this sweep and of the one before, in turn.
    """

    x: Buffer
    clean: Buffer
    reached: Buffer


class WindowSampler:
    """The stages of a sweep bound for the draws of a sampler, whose start, result and embedding they share."""

    def __init__(self, shared: LoopBuffers, sampler: PatchSampler, window: int, tolerance: float) -> None:
        self.shared, self.sampler, self.window = shared, sampler, window
        self.evaluations, self.draws = sampler.schedule.evaluations, sampler.independent
        sizes = {"B": self.draws, "W": window, "K": self.evaluations + 2}

        def allocate(tensor: str, stage: StageName = StageName.EXTRAPOLATE) -> Buffer:
            return shared.allocate(stage, tensor, **sizes)

        def constant(tensor: str, values: np.ndarray, stage: StageName = StageName.SETTLE) -> Buffer:
            buffer = allocate(tensor, stage)
            buffer.write(values)
            return buffer

        self.windows = [Window(allocate("x"), allocate("clean"), allocate("reached")) for _ in range(2)]
        self.added, self.weights, self.free = allocate("added"), allocate("weights"), allocate("free")
        self.states = allocate("states", StageName.SETTLE)
        self.steps = {name: allocate(name) for name in ("base", "gain", "slope", "keep", "offset")}
        self.indices = {
            "evaluations": constant("evaluations", np.array(self.evaluations)),
            "ahead": constant("ahead", np.arange(2 * window)),
            "every": constant("every", np.arange(shared.sizes["R"])),
            "rows": sampler.rows,
        }
        self.tolerance = constant("tolerance", np.array(tolerance))
        self.schedule = constant("schedule", self._schedule(), StageName.EXTRAPOLATE)
        self.head_inputs = self._head_inputs()
        self.guess = [self._extrapolate(1, 1), *self._advance(), self._settle(1)]
        self._sweeps: list[Captured] | None = None
        self._least: int | None = None  # sweeps that every patch took so far

    def prepare(self, noise: np.ndarray, guidance: float, tokens: np.ndarray | None, held: np.ndarray | None) -> None:
        """Set what the next patch is sampled from; the arguments are those of ``PatchRun.sample``."""
        sampler, halves = self.sampler, self.shared.sizes["R"] // self.draws
        drawn = sampler.draws(noise, tokens)
        following = np.minimum(np.arange(self.evaluations) + 1, self.evaluations - 1)
        added, free = np.zeros(self.added.shape, np.float32), np.ones(self.free.shape, np.float32)
        added[1:-1] = sampler.schedule.coefficients[:, 2, None, None, None] * drawn[following]
        if tokens is not None and held is not None and held.any():
            known = sampler.known_states(noise, tokens)
            path = np.concatenate([drawn[:1], known, known[-1:]])
            added[:, :, held], free[held] = path[:, :, held], 0
        start = np.zeros(self.windows[1].x.shape, np.float32)
        start[0] = np.tile(drawn[0], (halves, 1, 1))
        self.added.write(added)
        self.free.write(free)
        self.weights.write(np.repeat([guidance, 1 - guidance] if halves > 1 else [1], self.draws))
        self.windows[1].x.write(start)
        self.windows[1].clean.write(np.zeros(()))
        self.windows[1].reached.write(np.array(NOTHING))

    def sweep(self) -> int:
        """Sweep until every image has reached the end, which takes as many sweeps as evaluations at most.

        On a device that queues its work, as many as every patch took so far are launched without looking.

        Returns:
            the number of sweeps.
        """
        if self._sweeps is None:
            self._sweeps = [self.shared.backend.capture(self.launches(number)) for number in range(2)]
        unseen = (self._least or 1) if self.shared.backend.run_ahead else 1
        count = 0
        while count < self.evaluations:
            self._sweeps[count % 2]()
            count += 1
            if count >= unseen and self.windows[count % 2].reached.read().min() >= self.evaluations:
                break
        self._least = min(self._least or count, count)
        return count

    def close(self) -> None:
        """Give back what the device keeps for the sweeps."""
        for captured in self._sweeps or ():
            captured.close()
        self._sweeps = None

    def launches(self, number: int) -> list[Launch]:
        """A sweep: evaluate one of the two windows; the other gets what follows."""
        here, there = self.windows[number], 1 - number
        rows = (self.window * self.shared.sizes["R"], *here.x.shape[2:])
        x = here.x.reshaped(rows)
        head = self.shared.stages[StageName.HEAD].bind(
            # Noise is multiplied by 0: any draw serves.
            {**self.head_inputs, "x": x, "noise": x, "x_next": here.clean.reshaped(rows)}
        )
        return [head, self._extrapolate(number, there), *self._advance(), self._settle(number)]

    def _head_inputs(self) -> dict[str, Memory]:
        """What the head is given for each row of a window as a draw of its own, without guidance: its clean tokens."""
        rows = self.window * self.shared.sizes["R"]
        clean = self.shared.empty((3,), "float32")
        clean.write(np.array([0, 1, 0]))
        guidance, every = self.shared.empty((1,), "float32"), self.shared.empty((rows,), "int64")
        guidance.write(np.ones(()))
        every.write(np.arange(rows))
        return {
            **{
                name: table.reshaped((rows, *table.shape[2:]))
                for name, table in self.shared.window_modulations(self.window).items()
            },
            "coefficients": clean,
            "guidance": guidance,
            "rows": every,
        }

    def _extrapolate(self, number: int, last: int) -> Launch:
        here, before = self.windows[number], self.windows[last]
        return self.shared.stages[StageName.EXTRAPOLATE].bind(
            {
                **self.indices,
                **self.steps,
                "x": here.x,
                "clean": here.clean,
                "last_x": before.x,
                "last_clean": before.clean,
                "reached": here.reached,
                "last_reached": before.reached,
                "schedule": self.schedule,
                "added": self.added,
                "weights": self.weights,
                "free": self.free,
                "first": self.states[0],
            }
        )

    def _advance(self) -> list[Launch]:
        """The steps from the first state of the window to the last that the next window may begin with."""
        stage, halves = self.shared.stages[StageName.ADVANCE], self.shared.sizes["R"] // self.draws
        launches = []
        for k in range(2 * self.window - 1):
            step: dict[str, Memory] = {name: values[k] for name, values in self.steps.items()}
            for name in ("base", "gain"):  # [R, P, ...] as [H, B, P, ...]
                step[name] = step[name].reshaped((halves, self.draws, *step[name].shape[1:]))
            launches.append(stage.bind({**step, "x": self.states[k], "x_next": self.states[k + 1]}))
        return launches

    def _settle(self, number: int) -> Launch:
        here, following = self.windows[number], self.windows[1 - number]
        tables = {
            name.replace(MODULATION, TABLE): table.reshaped((table.shape[0] * table.shape[1], *table.shape[2:]))
            for name, table in self.shared.modulations.items()
        }
        return self.shared.stages[StageName.SETTLE].bind(
            {
                **self.indices,
                **tables,
                **self.shared.window_modulations(self.window),
                "states": self.states,
                "evaluated": here.x,
                "reached": here.reached,
                "tolerance": self.tolerance,
                "settled": following.reached,
                "x": self.sampler.x,
                "window": following.x,
            }
        )

    def _schedule(self) -> np.ndarray:
        """A, B and the logit's slope for each step, between two that keep the state, float32 ``[K, 3]``."""
        schedule = self.sampler.schedule
        steps = np.column_stack([schedule.coefficients[:, :2], schedule.logit_slopes])
        keep = np.array([[1, 0, 0]], np.float32)
        return np.concatenate([keep, steps, keep])


class WindowRun(PatchRun):
    """A patch behind one pass of the backbone, sampled in sweeps; ``sweeps`` is the number that the last one took."""

    def __init__(self, backbone: BackbonePass, window: WindowSampler) -> None:
        super().__init__(backbone, window.sampler)
        self.window, self.sweeps = window, 0
        steps = [backbone.launch, *window.sampler.modulation.launches, *window.guess]
        self._begin = backbone.shared.backend.capture(steps) if backbone.often else InOrder(steps)

    def sample(
        self,
        noise: np.ndarray,
        guidance: float,
        tokens: np.ndarray | None = None,
        held: np.ndarray | None = None,
    ) -> None:
        self.window.prepare(noise, guidance, tokens, held)
        self._begin()
        self.sweeps = self.window.sweep()
        self.sampler.embed()

    def close(self) -> None:
        self._begin.close()
