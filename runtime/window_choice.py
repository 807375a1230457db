"""Which window is faster here: sweeps from the bundle's own measurements, what they cost from timed launches."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from bitdance_edge.runtime.bundle.specs import MeasuredWindow
from bitdance_edge.runtime.bundle.stage_names import StageName
from bitdance_edge.runtime.errors import BuildError, OutOfMemoryError
from bitdance_edge.runtime.loaded import LoadedBundle
from bitdance_edge.runtime.loop import LoopShape
from bitdance_edge.runtime.window_costs import (
    WindowCosts,
    keep_costs,
    kept_costs,
    seconds_of_evaluation,
    seconds_of_sweep,
)

log = logging.getLogger(__name__)

ENOUGH = 0.9  # of what single evaluations take: what a window must stay below, as timings of one kind differ by 5 %
HOPELESS = 1.25  # of it: no other window is timed where the first takes more
FIRST_TIMED = 8
# Bytes of weights: a smaller head stays in a processor's cache, where more rows at once save no reading.
WORTH_TIMING = 16 << 20
LAST_GUESS = 0.5  # sweeps that the recurrence in front of the first one takes, at most


@dataclass(frozen=True)
class WindowChoice:
    """Chooses for one loaded bundle.

    Args:
        key: of what costs depend on: bundle, backend, device and threads.
    """

    loaded: LoadedBundle
    key: Callable[[LoopShape], str]

    def faster(self, shape: LoopShape, fits: Callable[[int], bool]) -> int:
        """The window that a loop of this shape is fastest with; 1: one evaluation after the other.

        Args:
            fits: whether there is memory for a window.
        """
        runs = self._measured(shape)
        if not runs or not self._worth_timing():
            return 1
        costs = self._costs(replace(shape, starts=(), window=1), runs, fits)
        together = {int(window): runs[int(window)] * seconds for window, seconds in costs.sweeps.items()}
        best = min(together, key=lambda window: together[window], default=1)
        return best if best > 1 and together[best] < ENOUGH * (shape.steps + 1) * costs.evaluation else 1

    def _measured(self, shape: LoopShape) -> dict[int, float]:
        """Sweeps by window, from what was measured with as many steps, or fewer: their share of the steps falls."""
        spec = self.loaded.bundle.window
        found: dict[int, MeasuredWindow] = {}
        for run in spec.runs if spec is not None else ():
            if run.sampler == shape.sampler and run.steps <= shape.steps and not run.flipped:
                found[run.window] = max(run, found.get(run.window, run), key=lambda each: each.steps)
        share = {
            window: (run.sweeps if shape.images == 1 else run.most_sweeps) / (run.steps + 1)
            for window, run in found.items()
        }
        return {window: part * (shape.steps + 1) + LAST_GUESS for window, part in share.items()}

    def _worth_timing(self) -> bool:
        queued = self.loaded.backend.run_ahead > 0  # a GPU gains by fewer launches, whatever their weights
        return queued or self.loaded.bundle.stage(StageName.HEAD).weight_bytes >= WORTH_TIMING

    def _costs(self, shape: LoopShape, runs: Mapping[int, float], fits: Callable[[int], bool]) -> WindowCosts:
        key = self.key(shape)
        if (kept := kept_costs(key)) is not None and all(int(window) in runs for window in kept.sweeps):
            return kept
        with self.loaded.loop(shape) as loop:
            single = seconds_of_evaluation(loop)
        sweeps: dict[str, float] = {}
        for window in sorted(runs, key=lambda window: (window != FIRST_TIMED, window)):
            if window > shape.steps + 1 or not fits(window):
                continue
            try:
                with self.loaded.loop(replace(shape, window=window)) as loop:
                    sweeps[str(window)] = seconds_of_sweep(loop)
            except (BuildError, OutOfMemoryError) as error:  # engines from before there were windows; too little memory
                log.info("windows of %d are not used: %s", window, error)
                break
            if runs[window] * sweeps[str(window)] > HOPELESS * (shape.steps + 1) * single:
                break
        costs = WindowCosts(single, sweeps)
        keep_costs(key, costs)
        return costs
