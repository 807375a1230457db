"""Any choice of formats as graphs and sessions: what the search tries, and what is written in the end."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnx import ModelProto

from bitdance_edge.calibration.graphs import quantized_graph
from bitdance_edge.calibration.layers import Layer
from bitdance_edge.calibration.sessions import session_of
from bitdance_edge.runtime.bundle.manifest import Bundle


@dataclass(frozen=True)
class Variants:
    """A bundle's graphs and layers with the limits of their scales; ``formats`` are then free to choose.

    Attributes:
        skeletons: stage -> graph, weights left in the bundle (those that SmoothQuant changed are inside).
        limits: name of a layer -> largest activation that its scale reaches, of those whose activations have one.
    """

    bundle: Bundle
    skeletons: Mapping[str, ModelProto]
    layers: Mapping[str, list[Layer]]
    limits: Mapping[str, float]
    threads: int | None

    def folder(self, stage: str) -> Path:
        return (self.bundle.folder / self.bundle.stage(stage).graph.path).parent

    def graph(self, stage: str, formats: Mapping[str, str]) -> ModelProto:
        """A stage with the layers quantised that ``formats`` names."""
        chosen = {layer.name: formats[layer.name] for layer in self.layers[stage] if layer.name in formats}
        return quantized_graph(self.skeletons[stage], self.folder(stage), self.layers[stage], chosen, self.limits)

    def sessions(self, formats: Mapping[str, str]) -> dict[str, Any]:
        """Sessions of the stages that differ from the bundle's."""
        return {
            stage: session_of(self.graph(stage, formats), self.folder(stage), self.threads)
            for stage, layers in self.layers.items()
            if any(layer.name in formats for layer in layers)
        }
