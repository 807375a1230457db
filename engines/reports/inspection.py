"""What an engine is: its sidecar, and where a GPU allows, the layers that the builder made of the graph."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bitdance_edge.runtime.backends.device import Device, find_device
from bitdance_edge.runtime.backends.tensorrt_library import load_library
from bitdance_edge.runtime.bundle.sidecar import Sidecar, damage, refuse_invalid
from bitdance_edge.runtime.errors import EngineError


def describe_engine(engine: Path) -> Iterator[str]:
    """Lines for a person to read.

    Raises:
        EngineError: there is no such engine, or it has no sidecar.
    """
    if not engine.is_file():
        raise EngineError(f"no engine at {engine}; build one with: bitdance-edge build BUNDLE --target rtx")
    sidecar = Sidecar.read(engine)
    yield from _described(sidecar)
    yield f"  file              {damage(sidecar, engine) or 'whole: size and SHA-256 are those of the build'}"
    yield ""
    yield from _parsed_layers(sidecar)
    yield ""
    yield from _built_layers(engine, sidecar, find_device())


def _described(sidecar: Sidecar) -> Iterator[str]:
    yield f"{sidecar.stage} for {sidecar.target}, built with {sidecar.library} {sidecar.library_version}"
    device = f" ({sidecar.device})" if sidecar.device else ""
    yield f"  GPUs              compute capability {', '.join(sidecar.capabilities)}{device}"
    yield f"  element types     {sidecar.precision}"
    yield f"  size              {sidecar.bytes / 1e6:.1f} MB, built in {sidecar.seconds:.1f} s"
    yield f"  images at once    1 to {sidecar.max_images}"
    for name, value in sidecar.options.items():
        yield f"  {name:17} {value}"
    for path, digest in sidecar.onnx.items():
        yield f"  from              {path}  SHA-256 {digest}"
    for name, inputs in sidecar.profiles.items():
        yield f"  profile {name}"
        for tensor, shapes in inputs.items():
            if not tensor.startswith("past_key_values."):
                yield f"    {tensor:16} {' .. '.join('x'.join(map(str, shape)) for shape in shapes)}"


def _parsed_layers(sidecar: Sidecar) -> Iterator[str]:
    total = sum(sum(types.values()) for types in sidecar.layers.values())
    yield f"{total} layers as parsed, before fusion, by element type of their output"
    for kind, types in sidecar.layers.items():
        yield f"  {kind:20} {', '.join(f'{name} {count}' for name, count in types.items())}"


def _built_layers(engine: Path, sidecar: Sidecar, device: Device | None) -> Iterator[str]:
    if device is None:
        yield "layers as built: to be read on a machine with an NVIDIA GPU; no driver answers here"
        return
    library = load_library(sidecar.library)
    if library.judges_engines:
        refuse_invalid(engine, library.trt, library.logger)
    loaded = library.trt.Runtime(library.logger).deserialize_cuda_engine(engine.read_bytes())
    if loaded is None:
        raise EngineError(f"{engine} does not load on {device.name}: {library.log[-1] if library.log else 'no reason'}")
    inspector = loaded.create_engine_inspector()
    layers = json.loads(inspector.get_engine_information(library.trt.LayerInformationFormat.JSON))["Layers"]
    yield f"{len(layers)} layers as built, on {device.name}"
    for layer in layers:
        yield f"  {_built_layer(layer)}"


def _built_layer(layer: dict[str, Any] | str) -> str:
    if isinstance(layer, str):  # all that an engine without detailed layers says
        return layer
    types = ", ".join(sorted({output.get("Format/Datatype", "?") for output in layer.get("Outputs", [])}))
    return f"{layer.get('LayerType', ''):16} {types:24} {layer['Name']}"
