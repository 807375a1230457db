"""One engine by itself on the GPU of this machine, on given inputs, through the runtime's own backend."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bitdance_edge.runtime.backends.cuda_device import CudaDevice, import_pycuda
from bitdance_edge.runtime.backends.device import Device, find_device
from bitdance_edge.runtime.backends.interface import Buffer
from bitdance_edge.runtime.backends.tensorrt import BoundEngine, TensorRTBackend, TensorRTStage
from bitdance_edge.runtime.backends.tensorrt_library import Library, load_library
from bitdance_edge.runtime.bundle.manifest import Bundle
from bitdance_edge.runtime.errors import BackendError


def open_engines(bundle: Bundle, folder: Path, library: str) -> TensorRTBackend:
    """The backend for the engines in a target's folder; none is loaded yet.

    Raises:
        BackendError: no GPU answers, or PyCUDA is not installed.
        BuildError: the library is not installed.
    """
    device = find_device()
    if device is None:
        raise BackendError("no NVIDIA driver answers here")
    import_pycuda()
    return TensorRTBackend(bundle, load_library(library), folder, CudaDevice(0), device.capability)


def engine_run(
    bundle: Bundle, stage: str, folder: Path, library: Library, device: Device
) -> Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]:
    """A stage's engine in a folder as a function of its inputs; each call opens the GPU and leaves nothing on it.

    Raises:
        BackendError: PyCUDA is not installed.
    """
    import_pycuda()

    def run(inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        backend = TensorRTBackend(bundle, library, folder, CudaDevice(0), device.capability)
        try:
            with backend.current():
                made = EngineRun.bind(backend.load(stage), inputs)
                made.launch()
                return {tensor.name: made.buffers[tensor.name].read() for tensor in bundle.stage(stage).outputs}
        finally:
            backend.close()

    return run


@dataclass(frozen=True)
class EngineRun:
    """A launch with its tensors: the inputs are written, the cache is one memory for input and output."""

    launch: BoundEngine
    buffers: Mapping[str, Buffer]

    @classmethod
    def bind(cls, stage: TensorRTStage, inputs: Mapping[str, np.ndarray]) -> "EngineRun":
        spec, backend = stage.spec, stage.backend
        sizes = {
            dim: size
            for tensor in spec.inputs
            for dim, size in zip(tensor.shape, inputs[tensor.name].shape, strict=True)
            if isinstance(dim, str)
        }
        buffers: dict[str, Buffer] = {}
        for tensor in spec.inputs:
            buffers[tensor.name] = backend.empty(inputs[tensor.name].shape, tensor.dtype)
            buffers[tensor.name].write(inputs[tensor.name])
        in_place = {present: past for past, present in backend.bundle.cache_names()}
        for tensor in spec.outputs:
            past = in_place.get(tensor.name)
            buffers[tensor.name] = buffers[past] if past else backend.empty(tensor.sized(sizes), tensor.dtype)
        return cls(stage.bind(buffers), buffers)
