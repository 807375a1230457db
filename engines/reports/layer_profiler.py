"""Per-layer times of an engine, taken by TensorRT's own profiler interface from Python: a GPU is all it needs.

https://docs.nvidia.com/deeplearning/tensorrt/latest: IProfiler. Layers are timed one after the other, without a CUDA
graph, so their sum is more than the launch takes.
"""

import json
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np

from bitdance_edge.engines.engine_run import EngineRun
from bitdance_edge.engines.graph import GraphFacts
from bitdance_edge.engines.reports.layer_times import LayerTime, join_layers
from bitdance_edge.runtime.backends.tensorrt import TensorRTBackend

WARM_UP, RUNS = 5, 20


def profile_engine(
    backend: TensorRTBackend, stage: str, inputs: Mapping[str, np.ndarray], facts: GraphFacts
) -> list[LayerTime]:
    """Average milliseconds of every layer over ``RUNS`` launches, slowest first.

    Raises:
        BuildError: there is no such engine, or it does not fit bundle, library or GPU.
    """
    trt = backend.library.trt
    sums: dict[str, float] = defaultdict(float)

    class Times(trt.IProfiler):
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            sums[layer_name] += ms

    with backend.current():
        loaded = backend.load(stage)
        launch = EngineRun.bind(loaded, inputs).launch
        times: Any = Times()
        launch.context.trt.profiler = times
        for count in (WARM_UP, RUNS):
            backend.lane.synchronize()
            sums.clear()
            for _ in range(count):
                launch()
            backend.lane.synchronize()
        information = loaded.engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    return join_layers({name: ms / RUNS for name, ms in sums.items()}, json.loads(information)["Layers"], facts)
