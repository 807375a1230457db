"""How often a generation launches each stage, with which sizes; nothing is timed here."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from bitdance_edge.bench.ours import draw
from bitdance_edge.bench.work import Work
from bitdance_edge.calibration.sessions import pipeline_on
from bitdance_edge.runtime.backends.interface import Backend
from bitdance_edge.runtime.backends.observed import ObservedBackend, Observer
from bitdance_edge.runtime.backends.onnxruntime import HostBuffer
from bitdance_edge.runtime.bundle.manifest import Bundle
from bitdance_edge.runtime.bundle.specs import StageSpec, dim_factor


@dataclass(frozen=True)
class Launches:
    """``count`` launches of a stage with its named dimensions at ``sizes``."""

    stage: str
    sizes: Mapping[str, int]
    count: int


def count_launches(bundle: Bundle, backend: Backend, work: Work, before: Observer | None = None) -> list[Launches]:
    """Run one generation on a backend with memory of the host and count its launches; ``before`` observes them too."""
    counts: Counter[tuple[str, tuple[tuple[str, int], ...]]] = Counter()

    def count(stage: str, buffers: Mapping[str, HostBuffer]) -> None:
        counts[stage, tuple(sorted(sizes_of(bundle.stage(stage), buffers).items()))] += 1
        if before is not None:
            before(stage, buffers)

    with pipeline_on(bundle, ObservedBackend(backend, before=count), work.images) as pipeline:
        draw(pipeline, work)
    return [Launches(stage, dict(sizes), number) for (stage, sizes), number in counts.items()]


def sizes_of(spec: StageSpec, buffers: Mapping[str, HostBuffer]) -> dict[str, int]:
    """Read the named dimensions of a stage off these buffers."""
    sizes = {}
    for tensor in (*spec.inputs, *spec.outputs):
        for dim, size in zip(tensor.shape, buffers[tensor.name].shape, strict=True):
            if isinstance(dim, str):
                factor, name = dim_factor(dim)
                sizes[name] = size // factor
    return sizes
