"""What a build is: its record, and of an engine, where a GPU allows, the layers that the builder made of the graph."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bitdance_edge.runtime.backends.device import Device, find_device
from bitdance_edge.runtime.backends.engine_fit import refuse_invalid
from bitdance_edge.runtime.backends.tensorrt_library import load_library
from bitdance_edge.runtime.bundle.record import BuildRecord, record_path
from bitdance_edge.runtime.errors import BuildError


def describe_build(path: Path) -> Iterator[str]:
    """Lines for a person to read, of a graph or an engine in a bundle's ``targets/``.

    Raises:
        BuildError: there is no such file, or it has no record.
    """
    if not path.is_file():
        raise BuildError(f"nothing at {path}; build with: bitdance-edge build BUNDLE --target TARGET")
    record = BuildRecord.read(record_path(path.parent, path.stem))
    yield from _described(record)
    yield f"  file              {record.damage(path.parent) or 'whole: size and SHA-256 are those of the build'}"
    if record.layers:
        yield ""
        yield from _parsed_layers(record)
        yield ""
        yield from _built_layers(path, record, find_device())


def _described(record: BuildRecord) -> Iterator[str]:
    yield f"{record.stage} for {record.target}, built with {record.library} {record.library_version}"
    on = f" (on {record.built_on})" if record.built_on else ""
    yield f"  runs on           {', '.join(record.devices) or 'any'}{on}"
    yield f"  element types     {record.precision}"
    yield f"  size              {record.bytes / 1e6:.1f} MB, built in {record.seconds:.1f} s"
    checked = "not run where it was built" if record.error is None else f"{record.error:.1e}"
    yield f"  error             {checked} (allowed {record.tolerance:.0e}), against the bundle's own graph"
    yield f"  images at once    {'any number' if record.max_images is None else f'1 to {record.max_images}'}"
    for name, value in record.options.items():
        yield f"  {name:17} {value}"
    for source, digest in record.sources.items():
        yield f"  from              {source}  SHA-256 {digest}"
    for name, inputs in record.profiles.items():
        yield f"  profile {name}"
        for tensor, shapes in inputs.items():
            if not tensor.startswith("past_key_values."):
                yield f"    {tensor:16} {' .. '.join('x'.join(map(str, shape)) for shape in shapes)}"


def _parsed_layers(record: BuildRecord) -> Iterator[str]:
    total = sum(sum(types.values()) for types in record.layers.values())
    yield f"{total} layers as parsed, before fusion, by element type of their output"
    for kind, types in record.layers.items():
        yield f"  {kind:20} {', '.join(f'{name} {count}' for name, count in types.items())}"


def _built_layers(engine: Path, record: BuildRecord, device: Device | None) -> Iterator[str]:
    if device is None:
        yield "layers as built: to be read on a machine with an NVIDIA GPU; no driver answers here"
        return
    library = load_library(record.library)
    if library.judges_engines:
        refuse_invalid(engine, library.trt, library.logger)
    with library.recording() as said:
        loaded = library.trt.Runtime(library.logger).deserialize_cuda_engine(engine.read_bytes())
    if loaded is None:
        raise BuildError(f"{engine} does not load on {device.name}: {said[-1] if said else 'no reason'}")
    inspector = loaded.create_engine_inspector()
    layers = json.loads(inspector.get_engine_information(library.trt.LayerInformationFormat.JSON))["Layers"]
    yield f"{len(layers)} layers as built, on {device.name}"
    for layer in layers:
        yield f"  {_built_layer(layer)}"


def _built_layer(layer: dict[str, Any] | str) -> str:
    """A layer with the element types that its kernel reads and writes, and the kernel where the library names it."""
    if isinstance(layer, str):  # all that an engine without detailed layers says
        return layer
    read, written = (_types(layer.get(end, [])) for end in ("Inputs", "Outputs"))
    kernel = layer.get("TacticName") or ""
    line = f"{layer.get('LayerType', ''):16} {f'{read} -> {written}':32} {layer['Name']}"
    return f"{line}  by {kernel}" if kernel else line


def _types(tensors: Sequence[dict[str, Any]]) -> str:
    return ", ".join(sorted({tensor.get("Format/Datatype", "?") for tensor in tensors})) or "?"
