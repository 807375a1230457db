"""A bundle on this project's runtime, as a product would run it, or its graphs on another one under the same loop."""

from collections.abc import Mapping
from contextlib import closing
from time import perf_counter
from typing import cast

import numpy as np

from bitdance_edge.bench.measured import Image, StageSeconds
from bitdance_edge.bench.peers import OURS, PeerBackend, backend_of, instructions
from bitdance_edge.bench.work import Work, padded
from bitdance_edge.calibration.sessions import pipeline_on
from bitdance_edge.runtime import PatchDone, Pipeline
from bitdance_edge.runtime.backends.interface import Stage, StageTime
from bitdance_edge.runtime.backends.openvino import OpenVinoBackend
from bitdance_edge.runtime.bundle.manifest import Bundle


class BundleContender:
    """One bundle; ``kind`` is ``OURS`` or one of ``PEERS``."""

    def __init__(self, kind: str, bundle: str, threads: int, work: Work) -> None:
        started = perf_counter()
        self.loaded: Mapping[str, Stage] = {}
        if kind == OURS:
            self.pipeline = Pipeline.open(bundle, backend="onnxruntime-cpu", threads=threads, max_batch=work.images)
        else:
            opened = Bundle.open(bundle)
            backend = cast(PeerBackend | OpenVinoBackend, backend_of(kind, opened, threads))
            self.loaded, self.pipeline = backend.loaded, pipeline_on(opened, backend, work.images)
        self.opened = perf_counter() - started
        self.work = work

    def instructions(self) -> dict[str, str]:
        """How each stage multiplies, after an image."""
        specs = self.pipeline.bundle.stages
        return {name: instructions(self.loaded.get(name), specs[name]) for name in self.loaded or specs}

    def image(self) -> Image:
        before = _copied(self.pipeline.times())
        tokens, pixels = draw(self.pipeline, self.work)
        stages = {}
        for name, time in self.pipeline.times().items():
            old = before.get(name, StageTime())
            if time.launches > old.launches:
                stages[name] = StageSeconds(time.launches - old.launches, time.seconds - old.seconds)
        return Image(tokens=tokens, pixels=pixels, stages=stages)


def draw(pipeline: Pipeline, work: Work) -> tuple[np.ndarray, np.ndarray]:
    """Return tokens int8 ``[B, K, C]`` and pixels uint8 ``[B, H, W, 3]`` of the patches that are drawn."""
    bundle = pipeline.bundle
    request, patches, wanted = work.request(bundle), [], work.drawn(bundle)
    with closing(pipeline.stream(request)) as events:  # type: ignore[type-var]  a generator
        for event in events:
            if isinstance(event, PatchDone):
                patches.append(event.tokens)
                if len(patches) == wanted:
                    break
    tokens = np.concatenate(patches, axis=1)
    seeds = [work.seed + i for i in range(work.images)]
    return tokens, pipeline.decode(padded(tokens, bundle), seeds)


def _copied(times: dict[str, StageTime]) -> dict[str, StageTime]:
    return {name: StageTime(time.launches, time.seconds) for name, time in times.items()}
