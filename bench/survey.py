"""A generation on a bundle seen from outside: how often each stage is launched with which sizes, and which bits turn.

Every patch is sampled on top of the reference's patches (teacher forcing), so that a bit that turns is that patch's own
and does not turn others. Nothing is timed here.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bitdance_edge.bench.ours import draw
from bitdance_edge.bench.work import Work
from bitdance_edge.calibration.sessions import pipeline_on
from bitdance_edge.runtime.backends.observed import ObservedBackend
from bitdance_edge.runtime.backends.onnxruntime import HostBuffer, OnnxRuntimeBackend
from bitdance_edge.runtime.bundle.manifest import Bundle
from bitdance_edge.runtime.bundle.specs import StageSpec, dim_factor


@dataclass(frozen=True)
class Launches:
    """``count`` launches of a stage with its named dimensions at ``sizes``."""

    stage: str
    sizes: Mapping[str, int]
    count: int


class LaunchCounter:
    """Told of every launch (an ``Observer``)."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self._counts: Counter[tuple[str, tuple[tuple[str, int], ...]]] = Counter()

    def __call__(self, stage: str, buffers: Mapping[str, HostBuffer]) -> None:
        self._counts[stage, tuple(sorted(sizes_of(self.bundle.stage(stage), buffers).items()))] += 1

    @property
    def launches(self) -> list[Launches]:
        return [Launches(stage, dict(sizes), count) for (stage, sizes), count in self._counts.items()]


def sizes_of(spec: StageSpec, buffers: Mapping[str, HostBuffer]) -> dict[str, int]:
    """The named dimensions of a stage as these buffers have them."""
    sizes = {}
    for tensor in (*spec.inputs, *spec.outputs):
        for dim, size in zip(tensor.shape, buffers[tensor.name].shape, strict=True):
            if isinstance(dim, str):
                factor, name = dim_factor(dim)
                sizes[name] = size // factor
    return sizes


def survey(
    bundle: str, threads: int, work: Work, tokens: np.ndarray, unconditional: np.ndarray | None
) -> dict[str, Any]:
    """Launches, and the share of bits that turn in each patch under teacher forcing.

    Args:
        tokens: the reference's, int8 ``[B, K, C]``.
        unconditional: those of the first patch's unconditional rows, where they are drawn apart.
    """
    opened = Bundle.open(bundle)
    counter, flips = LaunchCounter(opened), []
    teacher = np.split(tokens.astype(np.float32), tokens.shape[1] // opened.model.tokens_per_step, axis=1)

    def before(stage: str, buffers: Mapping[str, HostBuffer]) -> None:
        counter(stage, buffers)
        if stage == "tokens":
            x, given = buffers["x"], teacher[len(flips)]
            flips.append(float(np.mean((x.array[: len(given)] > 0) != (given > 0))))
            if len(x.array) > len(given) and unconditional is not None:
                x.array[len(given) :] = unconditional
            x.array[: len(given)] = given

    backend = ObservedBackend(OnnxRuntimeBackend(opened, threads), before=before)
    with pipeline_on(opened, backend, work.images) as pipeline:
        draw(pipeline, work)
    launches = [{"stage": item.stage, "sizes": item.sizes, "count": item.count} for item in counter.launches]
    return {"launches": launches, "forced_by_patch": flips}
