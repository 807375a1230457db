"""TensorRT on the GPU that is not there (``fake_gpu``): a builder, and engines that are the bundle's ONNX files."""

from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
from fake_driver import GARBAGE

from bitdance_edge.runtime.backends.onnxruntime import cpu_options, import_onnxruntime

if TYPE_CHECKING:
    from fake_gpu import FakeGpu

ARENA = 1000  # bytes that every engine wants for its activations, per row of its first input


def compute(engine: "Engine", outputs: list[str], inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    return engine.session.run(outputs, inputs)


class Engine:
    def __init__(self, gpu: "FakeGpu", stage: str) -> None:
        self.gpu, self.stage, self.spec = gpu, stage, gpu.bundle.stage(stage)
        path = gpu.bundle.folder / self.spec.graph.path
        self.session = import_onnxruntime().InferenceSession(str(path), cpu_options(1))
        self.layers = ["first layer", "second layer"]
        self.contexts = 0  # that were ever made
        self.streamable_weights_size, self._on_gpu = len(path.read_bytes()), 0
        gpu.engines[stage] = self

    @property
    def weight_streaming_budget_v2(self) -> int:
        return self._on_gpu

    @weight_streaming_budget_v2.setter
    def weight_streaming_budget_v2(self, size: int) -> None:
        assert not self.contexts, "the budget is set before there are contexts"
        self._on_gpu = size

    @property
    def num_io_tensors(self) -> int:
        return len(self._tensors())

    def get_tensor_name(self, index: int) -> str:
        return list(self._tensors())[index]

    def get_tensor_mode(self, name: str) -> str:
        return self._tensors()[name][0]

    def get_tensor_dtype(self, name: str) -> Any:
        onnx = self._tensors()[name][1].type.removeprefix("tensor(").removesuffix(")")
        return SimpleNamespace(name={"float": "FLOAT", "float16": "HALF"}.get(onnx, onnx.upper()))

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(dim if isinstance(dim, int) else -1 for dim in self._tensors()[name][1].shape)

    def _tensors(self) -> dict[str, tuple[str, Any]]:
        inputs = {tensor.name: ("input", tensor) for tensor in self.session.get_inputs()}
        return inputs | {tensor.name: ("output", tensor) for tensor in self.session.get_outputs()}

    def create_execution_context(self, strategy: object) -> "ExecutionContext":
        assert strategy == "user managed"
        self.contexts += 1
        return ExecutionContext(self)

    def get_aliased_input_tensor(self, output: str) -> str | None:
        cached = output.startswith("present.") and self.gpu.aliases
        return output.replace("present.", "past_key_values.") if cached else None

    def create_engine_inspector(self) -> Any:
        layers = '{"Layers": [{"Name": "first layer", "Metadata": ""}, "second layer"]}'
        return SimpleNamespace(get_engine_information=lambda form: layers)


class ExecutionContext:
    def __init__(self, engine: Engine) -> None:
        self.engine, self.gpu = engine, engine.gpu
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.arena = (0, 0)
        self.warm = False
        self.profiler: Any = None
        self.gpu.contexts += 1

    def __del__(self) -> None:
        self.gpu.contexts -= 1

    def set_optimization_profile_async(self, index: int, handle: int) -> bool:
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = tuple(shape)
        return True

    def update_device_memory_size_for_shapes(self) -> int:
        return ARENA * next(iter(self.shapes.values()))[0]

    def set_device_memory(self, address: int, size: int) -> None:
        self.arena = (address, size)
        self.gpu.arenas.add(address)

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def is_stream_capturable(self, handle: int) -> bool:
        return True

    def execute_async_v3(self, handle: int) -> bool:
        stream, engine, arena = self.gpu.streams[handle], self.engine, self.arena
        addresses = dict(self.addresses)
        if stream.captured is not None and not self.warm:
            return False
        assert arena[1] >= self.update_device_memory_size_for_shapes(), "the context has too little memory"
        for tensor in engine.spec.outputs:
            past = engine.get_aliased_input_tensor(tensor.name)
            read = {addresses[item.name] for item in engine.spec.inputs}
            assert addresses[tensor.name] == addresses[past] if past else addresses[tensor.name] not in read
        self.warm = True

        def run() -> None:
            inputs = {
                tensor.name: self.gpu.array_at(addresses[tensor.name], self.shapes[tensor.name], tensor.dtype).copy()
                for tensor in engine.spec.inputs
            }
            self.gpu.bytes_at(*arena)[:] = GARBAGE
            names = [tensor.name for tensor in engine.spec.outputs]
            for tensor, values in zip(engine.spec.outputs, compute(engine, names, inputs), strict=True):
                self.gpu.array_at(addresses[tensor.name], values.shape, tensor.dtype)[...] = values
            if self.profiler is not None:
                for layer in engine.layers:
                    self.profiler.report_layer_time(layer, 0.5)

        stream.push(f"run {engine.stage}", run)
        return True


def builder(gpu: "FakeGpu") -> dict[str, Any]:
    """The names of TensorRT that a build uses; a network is a stage of the bundle, and of its layers the cache's."""

    class Network:
        stage = ""

        @property
        def outputs(self) -> list[Any]:
            return [SimpleNamespace(name=tensor.name) for tensor in gpu.bundle.stage(self.stage).outputs]

        @property
        def num_outputs(self) -> int:
            return len(self.outputs)

        def get_output(self, index: int) -> Any:
            return self.outputs[index]

        @property
        def num_layers(self) -> int:
            return 2 * gpu.bundle.cache.layers if self.stage == "backbone" else 0

        def get_layer(self, index: int) -> Any:
            past, present = (
                SimpleNamespace(name=name, dtype=SimpleNamespace(name="FLOAT"))
                for name in list(gpu.bundle.cache_names())[index]
            )
            return SimpleNamespace(
                type=LayerType.KV_CACHE_UPDATE, get_input=lambda number: past, get_output=lambda number: present
            )

    class LayerType(Enum):
        KV_CACHE_UPDATE = 0
        ATTENTION_INPUT = 1

    class Builder:
        def __init__(self, logger: object) -> None:
            self.create_optimization_profile = lambda: SimpleNamespace(set_shape=lambda name, *shapes: None)

        def create_network(self, flags: int) -> Network:
            return Network()

        def create_builder_config(self) -> Any:
            return SimpleNamespace(add_optimization_profile=lambda profile: 0)

        def build_serialized_network(self, network: Network, config: Any) -> bytes:
            config.progress_monitor.phase_start("Building engine", None, 1)
            config.progress_monitor.phase_finish("Building engine")
            return f"engine of {network.stage}".encode()

    class OnnxParser:
        def __init__(self, network: Network, logger: object) -> None:
            self.network = network

        def parse_from_file(self, path: str) -> bool:
            self.network.stage = Path(path).stem
            return True

    return {
        "Builder": Builder,
        "OnnxParser": OnnxParser,
        "LayerType": LayerType,
        "IProgressMonitor": type("IProgressMonitor", (), {}),
        "NetworkDefinitionCreationFlag": SimpleNamespace(STRONGLY_TYPED=1),
        "ProfilingVerbosity": SimpleNamespace(DETAILED=1),
    }


def tensorrt(gpu: "FakeGpu") -> Any:
    """The module of full TensorRT, which has no way to judge an engine by its header."""

    class Runtime:
        def __init__(self, logger: object) -> None:
            pass

        def deserialize_cuda_engine(self, plan: Any) -> Engine:
            if not gpu.implicit_context:
                gpu.require_current()
            return Engine(gpu, bytes(plan[:]).decode().removeprefix("engine of "))

    class IProfiler:
        def __init__(self) -> None:
            pass

    return SimpleNamespace(
        __name__="tensorrt",
        __version__="11.4.0",
        **builder(gpu),
        Runtime=Runtime,
        TensorIOMode=SimpleNamespace(INPUT="input", OUTPUT="output"),
        IProfiler=IProfiler,
        LayerInformationFormat=SimpleNamespace(JSON="json"),
        ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="user managed"),
    )
