"""Per-layer times that TensorRT measured, with the PyTorch module of each layer."""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitdance_edge.engines.graph import GraphFacts
from bitdance_edge.engines.reports.layers import module_of, nodes_of
from bitdance_edge.runtime.errors import BuildError


@dataclass(frozen=True)
class LayerTime:
    name: str
    module: str  # "" where the layer names no node of the graph
    milliseconds: float  # average of a run


def read_layer_times(times: Path, info: Path, facts: GraphFacts) -> list[LayerTime]:
    """Join ``--exportProfile`` and ``--exportLayerInfo`` by layer name; slowest first.

    Raises:
        BuildError: a file is not what these options write.
    """
    try:
        # The first entry of a profile counts its runs; the others are layers.
        measured = [entry for entry in json.loads(times.read_text(encoding="utf-8")) if "name" in entry]
        layers = json.loads(info.read_text(encoding="utf-8"))["Layers"]
        return join_layers({entry["name"]: float(entry["averageMs"]) for entry in measured}, layers, facts)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BuildError(
            f"{times} and {info} are not the profile and layers of trtexec ({error!r}); "
            "run the command of profile.sh by itself to see what it says"
        ) from None


def join_layers(measured: Mapping[str, float], layers: Sequence[Any], facts: GraphFacts) -> list[LayerTime]:
    """Milliseconds of layers by name, with the modules that the inspector's entries lead to; slowest first."""
    metadata = {layer["Name"]: layer.get("Metadata", "") for layer in layers if isinstance(layer, dict)}
    joined = [
        LayerTime(name, module_of(nodes_of(name, metadata.get(name, ""), facts), facts), milliseconds)
        for name, milliseconds in measured.items()
    ]
    return sorted(joined, key=lambda layer: -layer.milliseconds)


def module_times(layers: Sequence[LayerTime]) -> dict[str, float]:
    """Milliseconds of each module, slowest first; layers without one count as ``(none)``."""
    sums: dict[str, float] = defaultdict(float)
    for layer in layers:
        sums[layer.module or "(none)"] += layer.milliseconds
    return dict(sorted(sums.items(), key=lambda item: -item[1]))


def layer_table(layers: Sequence[LayerTime]) -> Iterator[str]:
    total = sum(layer.milliseconds for layer in layers) or 1.0
    yield f"{'ms':>9} {'%':>6}  {'module':40}  layer"
    for layer in layers:
        share = 100 * layer.milliseconds / total
        yield f"{layer.milliseconds:9.4f} {share:6.2f}  {layer.module or '(none)':40}  {layer.name}"
