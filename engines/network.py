"""An ONNX file as a TensorRT network: parsed, made buildable, and looked at before the build."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import IO, Any

from bitdance_edge.engines.failure import BuildFailure, parse_failure
from bitdance_edge.engines.graph import GraphFacts
from bitdance_edge.runtime.backends.tensorrt_library import Library
from bitdance_edge.runtime.bundle.manifest import Bundle


def parse_network(library: Library, builder: Any, stage: str, path: Path, facts: GraphFacts) -> Any:
    """The network of an ONNX file; it keeps the parser, whose weights it uses, for as long as it lives.

    Raises:
        BuildFailure: the parser refuses a node, which is named with its module.
    """
    trt = library.trt
    # TensorRT 10 takes precision from the graph only with this flag; 11 and RTX always do and ignore it.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, library.logger)
    if not parser.parse_from_file(str(path)):
        raise parse_failure(stage, [parser.get_error(i) for i in range(parser.num_errors)], facts)
    _let_attention_decompose(trt, network)
    return network


def _layers(network: Any) -> Iterator[Any]:
    return (network.get_layer(i) for i in range(network.num_layers))


def _let_attention_decompose(trt: ModuleType, network: Any) -> None:
    """Attention in float32 has no kernel of its own, and builds only if it may become several.

    https://docs.nvidia.com/deeplearning/tensorrt/latest: IAttention.decomposable
    """
    for layer in _layers(network):
        if layer.type == trt.LayerType.ATTENTION_INPUT and layer.get_input(0).dtype == trt.float32:
            layer.__class__ = trt.IAttentionInputLayer  # the base class does not show what it holds
            layer.attention.decomposable = True


def require_cache_in_place(library: Library, network: Any, bundle: Bundle) -> None:
    """Require one memory for each cache tensor: an update whose input and output are the network's own.

    Raises:
        BuildFailure: an updated cache is a new tensor, which would copy the whole cache at every patch.
    """
    trt = library.trt
    updates = {
        layer.get_output(0).name: layer.get_input(0).name
        for layer in _layers(network)
        if layer.type == trt.LayerType.KV_CACHE_UPDATE
    }
    outputs = {network.get_output(i).name for i in range(network.num_outputs)}
    for past, present in bundle.cache_names():
        if updates.get(present) != past or present not in outputs:
            raise BuildFailure(
                f"backbone: {present} is not {past} updated in place, but another tensor; "
                "export the bundle again with: bitdance-edge export, without --opset 20"
            )


def require_aliased_cache(engine: Any, bundle: Bundle) -> None:
    """Require the same of a loaded engine, as the library sees it (``ICudaEngine.get_aliased_input_tensor``).

    Args:
        engine: as ``deserialize_cuda_engine`` gave it, None where it could not.

    Raises:
        BuildFailure: the engine did not load, or an output of the cache does not share the memory of its input.
    """
    if engine is None:
        raise BuildFailure("backbone: the engine was built but does not load on this GPU; try another --target")
    for past, present in bundle.cache_names():
        if (shared := engine.get_aliased_input_tensor(present)) != past:
            raise BuildFailure(f"backbone: the engine gives {present} the memory of {shared}, not of {past}")


def write_engine(library: Library, builder: Any, network: Any, config: Any, path: Path) -> bool:
    """Build a network and write the engine; False where the library gave up.

    Where the library can, it writes the engine as it makes it, so that it is never in memory whole.

    Raises:
        OSError: the file cannot be written.
    """
    if not library.streams_engines:
        plan = builder.build_serialized_network(network, config)
        if plan is not None:
            path.write_bytes(plan)
        return plan is not None
    with path.open("wb") as file:
        writer = _engine_writer(library.trt, file)
        built = builder.build_serialized_network_to_stream(network, config, writer)
    if writer.error is not None:
        raise writer.error
    return bool(built)


def _engine_writer(trt: ModuleType, file: IO[bytes]) -> Any:
    """An ``IStreamWriter`` to a file; the library takes a short count for a failure, and cannot pass on an error.

    https://docs.nvidia.com/deeplearning/tensorrt/latest/_static/python-api/infer/Core/StreamWriter.html
    """

    class Writer(trt.IStreamWriter):
        def __init__(self) -> None:
            super().__init__()
            self.error: OSError | None = None

        def write(self, data: Any) -> int:
            try:
                return file.write(data)
            except OSError as error:
                self.error = error
                return 0

    return Writer()


def layer_kinds(network: Any) -> dict[str, dict[str, int]]:
    """Layer kind -> element type of its first output -> number of layers."""
    kinds: dict[str, Counter[str]] = defaultdict(Counter)
    for layer in _layers(network):
        kinds[layer.type.name][layer.get_output(0).dtype.name] += 1
    return {kind: dict(sorted(types.items())) for kind, types in sorted(kinds.items())}
