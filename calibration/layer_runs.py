"""The layers of a stage, one after the other: what entered each over all launches, and what it hands on.

A layer's weights are asked for in the order of the graph. The segment that a layer is in runs when the layer is asked
for, over what the segment before handed on; that is kept until the next segment runs, so that a run that was stopped
goes on there.
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from bitdance_edge.calibration.activations import Activations, Gathered
from bitdance_edge.calibration.errors import CalibrationError
from bitdance_edge.calibration.graphs import StageGraph
from bitdance_edge.calibration.launches import Launches
from bitdance_edge.calibration.recipe import CalibrationRecipe
from bitdance_edge.calibration.segments import Segment, SegmentRun

HELD_ROWS = 256  # of a layer's inputs in held-out images, on which its error is measured


@dataclass(frozen=True)
class Images:
    """Images that scales are chosen on, and others that errors are measured on."""

    seen: int
    held_out: int

    @property
    def all(self) -> range:
        return range(self.seen + self.held_out)


@dataclass
class Entered:
    """What entered the layers of one segment: statistics of the seen images, some rows of the others."""

    activations: Mapping[str, Activations]
    held: Mapping[str, np.ndarray]


@dataclass
class LayerRuns:
    """Runs the segments of one stage in their order.

    Attributes:
        folder: where what is handed on is kept.
        given: what the stage is given.
    """

    graph: StageGraph
    parts: Sequence[Segment]
    folder: Path
    given: Launches
    images: Images
    recipe: CalibrationRecipe
    threads: int | None
    _current: int = field(default=-1, init=False)
    _entered: Entered | None = field(default=None, init=False)

    def entered(self, layer: str) -> Entered:
        """What entered the segment that a layer is in; those before it have run."""
        place = next(i for i, part in enumerate(self.parts) if layer in {each.name for each in part.layers})
        if place != self._current:
            self._entered = None  # before the next one needs the memory
            for i in range(self._first_to_run(place), place + 1):
                self._entered = self._run(i, gather=i == place)
            self._current = place
        assert self._entered is not None
        return self._entered

    def finish(self) -> Launches:
        """Run what is behind the last layer; returns what the stage hands on."""
        last = len(self.parts)
        for i in range(self._first_to_run(last), last):
            self._run(i, gather=False)
        return self._behind(last - 1)

    def _first_to_run(self, place: int) -> int:
        """The segment behind the last one that is complete, at most ``place``."""
        return next((i + 1 for i in range(place - 1, -1, -1) if self._behind(i).complete), 0)

    def _behind(self, place: int) -> Launches:
        """What a segment hands on."""
        return Launches(self.folder / f"{self.graph.stage}-{place:03d}", self.graph.stage)

    def _run(self, place: int, gather: bool) -> Entered | None:
        part, before, behind = self.parts[place], self._before(place), self._behind(place)
        if place >= 2:
            shutil.rmtree(self._behind(place - 2).folder, ignore_errors=True)
        gathered = Gathered.of(part.layers, self.recipe)
        wanted = gathered.tensors if gather else []
        run = SegmentRun(self.graph, part, wanted, self.threads)
        needed = {name for other in self.parts[place + 1 :] for name in other.inputs}
        needed |= {value.name for value in self.graph.model.graph.output}
        held: dict[str, list[np.ndarray]] = {name: [] for name in wanted}
        title = f"{self.graph.stage} {place + 1}/{len(self.parts)}"
        for image in tqdm(self.images.all, desc=title, unit="image", leave=False, disable=None):
            launches = []
            for first, sample in _with_first(before.of(image)):
                made = run(sample.inputs, first)
                if gather and image < self.images.seen:
                    gathered.add(sample, made, None)
                elif gather:
                    for name in wanted:
                        held[name].append(_some_rows(made[name]))
                handed = {**sample.inputs, **made}
                launches.append((sample.step, {name: handed[name] for name in needed if name in handed}))
            behind.write(image, launches)
        behind.finish()
        if not gather:
            return None
        rows = {name: _some_rows(np.concatenate(found)) for name, found in held.items() if found}
        by_layer = {layer.name: rows[layer.activation] for layer in part.layers if layer.activation in rows}
        return Entered(gathered.by_layer, by_layer)

    def _before(self, place: int) -> Launches:
        found = self.given if place == 0 else self._behind(place - 1)
        if not found.complete:
            raise CalibrationError(
                f"{found.folder} is not complete; delete {self.folder} and run the same command again"
            )
        return found


def _with_first(samples: Iterator) -> Iterator:
    """Samples, each with whether it is the first of its image."""
    return ((i == 0, sample) for i, sample in enumerate(samples))


def _some_rows(values: np.ndarray) -> np.ndarray:
    """Evenly spaced rows of a tensor ``[..., inputs]``, at most ``HELD_ROWS``."""
    rows = values.reshape(-1, values.shape[-1])
    return rows[:: -(-len(rows) // HELD_ROWS)].astype(np.float32)
