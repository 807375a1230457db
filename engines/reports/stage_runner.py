"""What was built of a stage as a Polygraphy runner: a graph or an engine, its cache bound as the runtime binds it."""

import time
from collections import OrderedDict
from collections.abc import Mapping

import numpy as np
from polygraphy.backend.base import BaseRunner
from polygraphy.common import TensorMetadata

from bitdance_edge.engines.targets.interface import Run
from bitdance_edge.runtime.bundle.specs import StageSpec


class StageRunner(BaseRunner):
    """Runs a stage as a function of its inputs."""

    def __init__(self, name: str, spec: StageSpec, run: Run) -> None:
        super().__init__(name=name)
        self.spec, self.run = spec, run

    def get_input_metadata_impl(self) -> TensorMetadata:
        metadata = TensorMetadata()
        for tensor in self.spec.inputs:
            shape = [dim if isinstance(dim, int) else None for dim in tensor.shape]
            metadata.add(tensor.name, dtype=np.dtype(tensor.dtype), shape=shape)
        return metadata

    def infer_impl(self, feed_dict: Mapping[str, np.ndarray]) -> "OrderedDict[str, np.ndarray]":
        started = time.perf_counter()
        made = OrderedDict(self.run({name: np.asarray(values) for name, values in feed_dict.items()}))
        self.inference_time = time.perf_counter() - started
        return made
