"""ONNX Runtime on the CPU: buffers are numpy arrays, stages are sessions with bound inputs and outputs."""

from collections.abc import Mapping
from pathlib import Path
from time import perf_counter
from types import ModuleType
from typing import Any

import numpy as np

from bitdance_edge.runtime.backend import Buffer, Launch, StageTime
from bitdance_edge.runtime.bundle import Bundle, StageSpec
from bitdance_edge.runtime.errors import BackendError, BundleError

LOG_SEVERITY = 3  # errors only


def import_onnxruntime() -> ModuleType:
    """The onnxruntime package, or one error that says how to get it."""
    try:
        import onnxruntime
    except ImportError:
        raise BackendError(
            "no backend is installed: pip install 'bitdance-edge[cpu]' for ONNX Runtime on the CPU, or "
            "'bitdance-edge[gpu]' on a machine with CUDA (one of the two, never both)"
        ) from None
    return onnxruntime


def cpu_options(threads: int = 0, precision: str = "fp32") -> Any:
    """Options of a session on the CPU; 0 threads is one a physical core, ``precision`` that of the stage."""
    options = import_onnxruntime().SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = LOG_SEVERITY
    # Without VNNI the fused INT8 kernels saturate their 16-bit sums unless told to be exact.
    options.add_session_config_entry("session.x64quantprecision", "1")
    if precision == "fp8":  # no CPU computes in it: weights are unpacked once, not at every launch
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    return options


class HostBuffer:
    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        self.value = import_onnxruntime().OrtValue.ortvalue_from_numpy(array)  # shares the array's memory

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    def __getitem__(self, index: int) -> "HostBuffer":
        return HostBuffer(self.array[index])

    def write(self, values: np.ndarray) -> None:
        self.array[...] = values

    def read(self) -> np.ndarray:
        return self.array.copy()


class OnnxRuntimeStage:
    def __init__(self, path: Path, spec: StageSpec, threads: int, trace: Path | None) -> None:
        ort = import_onnxruntime()
        options = cpu_options(threads, spec.precision)
        if trace is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(trace / path.stem)
        self.spec, self.traced, self.time = spec, trace is not None, StageTime()
        try:
            self.session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's exceptions share no base class of their own
            reason = str(error).splitlines()[0]
            raise BundleError(f"ONNX Runtime {ort.__version__} cannot load {path}: {reason}") from error

    def bind(self, buffers: Mapping[str, Buffer]) -> Launch:
        binding = self.session.io_binding()
        tensors = (*self.spec.inputs, *self.spec.outputs)
        for tensor in self.spec.inputs:
            binding.bind_ortvalue_input(tensor.name, buffers[tensor.name].value)  # type: ignore[attr-defined]
        for tensor in self.spec.outputs:
            binding.bind_ortvalue_output(tensor.name, buffers[tensor.name].value)  # type: ignore[attr-defined]
        return BoundLaunch(self.session, binding, [buffers[tensor.name] for tensor in tensors], self.time)

    def close(self) -> None:
        """End the operator trace, if there is one; the file is complete then."""
        if self.traced:
            self.session.end_profiling()


class BoundLaunch:
    """Runs the graph over its buffers, and keeps them: a binding holds addresses, not the arrays behind them."""

    def __init__(self, session: Any, binding: Any, memory: list[Buffer], time: StageTime) -> None:
        self.session, self.binding, self.memory, self.time = session, binding, memory, time

    def __call__(self) -> None:
        started = perf_counter()
        self.session.run_with_iobinding(self.binding)
        self.time.add(perf_counter() - started)


class OnnxRuntimeBackend:
    name = "onnxruntime-cpu"

    def __init__(self, bundle: Bundle, threads: int | None = None, trace: Path | None = None) -> None:
        import_onnxruntime()
        if any(stage.precision == "bf16" for stage in bundle.stages.values()):
            raise BackendError(
                f"{bundle.folder} is in bfloat16, for which ONNX Runtime has no kernels on a CPU: "
                "export it again with --dtype fp32, or run it on a GPU"
            )
        if trace is not None:
            trace.mkdir(parents=True, exist_ok=True)
        self.bundle, self.threads, self.trace = bundle, threads or 0, trace  # 0 threads: one per physical core

    def empty(self, shape: tuple[int, ...], dtype: str) -> HostBuffer:
        return HostBuffer(np.zeros(shape, dtype))

    def load(self, stage: str) -> OnnxRuntimeStage:
        return OnnxRuntimeStage(self.bundle.verified(stage), self.bundle.stage(stage), self.threads, self.trace)
