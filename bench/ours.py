"""A bundle on this project's runtime, as a product would run it: ONNX Runtime on the CPU."""

from contextlib import closing
from time import perf_counter

import numpy as np

from bitdance_edge.bench.measured import Image, StageSeconds
from bitdance_edge.bench.work import Work, padded
from bitdance_edge.runtime import PatchDone, Pipeline
from bitdance_edge.runtime.backends.interface import StageTime


class OurContender:
    def __init__(self, bundle: str, threads: int, work: Work) -> None:
        started = perf_counter()
        self.pipeline = Pipeline.open(bundle, backend="onnxruntime-cpu", threads=threads, max_batch=work.images)
        self.opened = perf_counter() - started
        self.work = work

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
