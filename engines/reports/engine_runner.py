"""A TensorRT engine as a Polygraphy runner; Polygraphy's own has no binding for a cache in place."""

import time
from collections import OrderedDict
from collections.abc import Mapping

import numpy as np
from polygraphy.backend.base import BaseRunner
from polygraphy.common import TensorMetadata

from bitdance_edge.engines.engine_run import EngineRun
from bitdance_edge.runtime.backends.tensorrt import TensorRTBackend


class EngineRunner(BaseRunner):
    """Closes the backend when it is done with."""

    def __init__(self, backend: TensorRTBackend, stage: str) -> None:
        super().__init__(name="tensorrt")
        self.backend, self.stage = backend, stage

    def get_input_metadata_impl(self) -> TensorMetadata:
        metadata = TensorMetadata()
        for tensor in self.backend.bundle.stage(self.stage).inputs:
            shape = [dim if isinstance(dim, int) else None for dim in tensor.shape]
            metadata.add(tensor.name, dtype=np.dtype(tensor.dtype), shape=shape)
        return metadata

    def infer_impl(self, feed_dict: Mapping[str, np.ndarray]) -> "OrderedDict[str, np.ndarray]":
        with self.backend.current():
            stage = self.backend.load(self.stage)
            run = EngineRun.bind(stage, {name: np.asarray(values) for name, values in feed_dict.items()})
            started = time.perf_counter()
            run.launch()
            made = OrderedDict((tensor.name, run.buffers[tensor.name].read()) for tensor in stage.spec.outputs)
            self.inference_time = time.perf_counter() - started
        return made

    def deactivate_impl(self) -> None:
        self.backend.close()
