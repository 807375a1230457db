"""OpenVINO on the CPU, with products in bfloat16, which some processors multiply several times as fast as float32.

Float32 stages that are mostly products run in it; all others run in ONNX Runtime, as does a stage with an operator that
OpenVINO lacks (TensorScatter of the backbone, before ``export --opset 20``). Tensors between stages stay float32.
https://docs.openvino.ai/2026/openvino-workflow/running-inference/inference-devices-and-modes/cpu-device.html
"""

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path
from time import perf_counter
from types import ModuleType
from typing import Any, Literal, cast

import numpy as np

from bitdance_edge.imports import failed_import
from bitdance_edge.runtime.backends.interface import InOrder, Launch, Memory, Stage, StageTime
from bitdance_edge.runtime.backends.onnxruntime import HostBuffer, OnnxRuntimeBackend
from bitdance_edge.runtime.backends.signature import Loaded, require_memory_for, require_signature
from bitdance_edge.runtime.bundle.manifest import Bundle
from bitdance_edge.runtime.bundle.specs import StageSpec
from bitdance_edge.runtime.bundle.stage_names import StageName
from bitdance_edge.runtime.errors import BackendError, BundleError, OutOfMemoryError
from bitdance_edge.runtime.values import shown

log = logging.getLogger(__name__)

# The encoder says which bits an image has, and stays in float32.
STAGES = (StageName.BACKBONE, StageName.MODULATION, StageName.HEAD, StageName.DECODER)
TYPES = {"f32": "float32", "i64": "int64", "u8": "uint8", "boolean": "bool"}  # OpenVINO's -> as a manifest calls it
MULTIPLYING = ("FullyConnected", "MatMul", "Convolution")  # kinds of OpenVINO's operators
# Limits the instructions that OpenVINO's kernels use (oneDNN's CPU dispatcher control). Its list of capabilities leaves
# that out; below these it fails to compile what it takes for possible, or crashes.
ISA_LIMIT = "ONEDNN_MAX_CPU_ISA"
WITH_BFLOAT16 = ("DEFAULT", "ALL", "AVX10", "BF16", "FP16", "AMX")  # parts of the limits that allow bfloat16
Precision = Literal["f32", "bf16"]


def import_openvino() -> ModuleType:
    """The openvino package, or one error that says how to get it."""
    try:
        import openvino

        openvino.Core  # noqa: B018  of what is only a folder of that name, nothing can be used
    except Exception as error:  # a broken extension module may raise any
        failed = failed_import(error, "openvino")
        if failed is not None and failed.where:
            raise BackendError(failed.explained("openvino")) from error
        raise BackendError("openvino is not installed: pip install 'bitdance-edge[openvino]'") from None
    return openvino


@cache
def shared_core() -> Any:
    """OpenVINO's core, one for the life of the process.

    On processors with AMX each core gives the thread that makes it another stack for signal handlers, and puts the one
    before back when it is freed, even if that is gone by then: with two cores, the next Ctrl-C crashed the process.
    """
    return import_openvino().Core()


def require_bfloat16() -> None:
    """Check that OpenVINO multiplies in bfloat16 on this processor.

    Raises:
        BackendError: it is not installed, or does not.
    """
    import_openvino()
    limit = os.environ.get(ISA_LIMIT, "DEFAULT").upper()
    if not any(part in limit for part in WITH_BFLOAT16):
        raise BackendError(
            f"{ISA_LIMIT} is {shown(limit)}, without products in bfloat16: unset it, or run on the device cpu"
        )
    if "BF16" not in shared_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise BackendError(
            "this processor has no products in bfloat16, for which OpenVINO is taken: run on the device cpu"
        )


class OpenVinoBackend:
    """Float32 stages in OpenVINO in bfloat16, the others in ONNX Runtime; launches are done when they return.

    Attributes:
        loaded: each stage that was loaded, by name.

    Raises:
        BackendError: OpenVINO or ONNX Runtime is not installed, the processor has no products in bfloat16, or no stage
            that would run in them is float32.
    """

    name = "openvino"
    run_ahead = 0

    def __init__(self, bundle: Bundle, threads: int | None = None) -> None:
        require_bfloat16()
        self.bundle, self.threads = bundle, threads
        self.host = OnnxRuntimeBackend(bundle, threads)
        self.faster = [name for name in STAGES if name in bundle.stages and bundle.stage(name).precision == "fp32"]
        if not self.faster:
            raise BackendError(
                f"{bundle.folder} has no float32 stage that OpenVINO would run in bfloat16: run it on the device cpu"
            )
        self.loaded: dict[str, Stage] = {}

    def empty(self, shape: tuple[int, ...], dtype: str, *, ahead: bool = False) -> HostBuffer:
        return self.host.empty(shape, dtype, ahead=ahead)

    def load(self, stage: str) -> Stage:
        self.loaded[stage] = self._load(stage)
        return self.loaded[stage]

    def capture(self, launches: Sequence[Launch]) -> InOrder:
        return InOrder(launches)

    def overwrite(self, target: Memory, source: Memory, rows: np.ndarray) -> Launch:
        return self.host.overwrite(target, source, rows)

    def second_lane(self) -> "OpenVinoBackend":
        return self

    def trim(self, stages: Iterable[Stage]) -> None:
        self.host.trim(stages)

    def current(self) -> AbstractContextManager[None]:
        return self.host.current()

    def close(self) -> None:
        """Stages own what they use, and give it back with their last reference."""

    def _load(self, stage: str) -> Stage:
        if stage in self.faster:
            opened = open_stage(self.bundle.verified(stage), self.bundle.stage(stage), self.threads, "bf16")
            if opened is not None:
                return opened
        return self.host.load(stage)


def open_stage(path: Path, spec: StageSpec, threads: int | None, precision: Precision) -> "OpenVinoStage | None":
    """Compile the graph of a stage; None where it has an operator that OpenVINO lacks.

    Args:
        precision: in which products are computed.

    Raises:
        BundleError: OpenVINO cannot compile it, or it is not what the manifest describes.
        OutOfMemoryError: it does not fit into memory.
    """
    core = shared_core()
    options: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": precision,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
    }
    if threads is not None:
        options["INFERENCE_NUM_THREADS"] = threads
    try:
        model = core.read_model(str(path))
    except RuntimeError as error:  # OpenVINO has one class for all errors
        log.info("%s runs in ONNX Runtime: OpenVINO says %s", path, _reason(error))
        return None
    try:
        compiled = core.compile_model(model, "CPU", options)
    except MemoryError as error:
        raise OutOfMemoryError(f"OpenVINO ran out of memory with {path}: close other programs") from error
    except RuntimeError as error:
        raise BundleError(
            f"OpenVINO {import_openvino().__version__} cannot compile {path}: {_reason(error)}"
        ) from error
    require_signature(path, spec, _described(compiled.inputs), _described(compiled.outputs))
    return OpenVinoStage(path, spec, compiled)


class OpenVinoStage:
    """A compiled graph, which reads and writes the loop's own memory."""

    def __init__(self, path: Path, spec: StageSpec, compiled: Any) -> None:
        self.path, self.spec, self.compiled, self.time = path, spec, compiled, StageTime()

    def bind(self, buffers: Mapping[str, Memory]) -> "BoundRequest":
        require_memory_for(self.path.stem, self.spec, buffers)
        return BoundRequest(self, buffers)

    def close(self) -> None:
        """The compiled graph is freed with its last reference."""

    @property
    def instructions(self) -> str:
        """Of its products, as OpenVINO names the kernels of the last launch."""
        operators = self.compiled.get_runtime_model().get_ops()
        found = {_fact(each, "primitiveType") for each in operators if _fact(each, "layerType") in MULTIPLYING}
        return ", ".join(sorted(found)) or "no products"


class BoundRequest:
    """Runs the graph over its buffers, and keeps them: tensors have addresses, not the memory behind them."""

    def __init__(self, stage: OpenVinoStage, buffers: Mapping[str, Memory]) -> None:
        tensor = import_openvino().Tensor
        self.stage, self.request = stage, stage.compiled.create_infer_request()
        self.tensors: list[Any] = []
        for port in (*stage.compiled.inputs, *stage.compiled.outputs):
            memory = cast(HostBuffer, buffers[_name(port, buffers)])
            self.tensors.append(tensor(memory.array, shared_memory=True))
            self.request.set_tensor(port, self.tensors[-1])

    def __call__(self) -> None:
        """Run the graph.

        Raises:
            OutOfMemoryError: there is too little memory.
            BundleError: the graph cannot take the values that the bundle has for it.
        """
        started = perf_counter()
        try:
            self.request.infer()
        except MemoryError as error:
            raise OutOfMemoryError("OpenVINO ran out of memory: generate fewer images at once") from error
        except RuntimeError as error:
            raise BundleError(f"OpenVINO cannot run {self.stage.path}: {_reason(error)}") from error
        self.stage.time.add(perf_counter() - started)


def _described(ports: Sequence[Any]) -> Loaded:
    """Inputs or outputs as ``require_signature`` takes them."""
    found: dict[str, tuple[str, Sequence[object]]] = {}
    for port in ports:
        dtype = str(port.element_type.get_type_name())
        dims = [None if dim.is_dynamic else dim.get_length() for dim in port.partial_shape]
        found[port.any_name] = TYPES.get(dtype, dtype), dims
    return found


def _name(port: Any, buffers: Mapping[str, Memory]) -> str:
    return next(name for name in port.names if name in buffers)


def _fact(operator: Any, name: str) -> str:
    return operator.get_rt_info()[name].astype(str)


def _reason(error: RuntimeError) -> str:
    """The last line that says something: the first ones are OpenVINO's own files and lines."""
    return [line.strip() for line in str(error).splitlines() if line.strip()][-1]
