"""Exports that take traced graphs from a bundle of the same model: tracing is most of what an export takes."""

import shutil
from collections.abc import Collection, Mapping
from pathlib import Path

import pytest

from bitdance_edge.export import exporter
from bitdance_edge.export.signatures import StageExport
from bitdance_edge.export.weights import WeightPlacer
from bitdance_edge.runtime import Bundle


def reuse_graphs(monkeypatch: pytest.MonkeyPatch, bundle: Bundle, traced: Collection[str] = ()) -> None:
    """Copy the graphs and weights of ``bundle`` in every export of this process, but for the stages to be traced."""
    trace = exporter.export_graph

    def export_graph(
        stage: StageExport, path: Path, opset: int, weights: WeightPlacer, properties: Mapping[str, str]
    ) -> None:
        if path.stem in traced:
            trace(stage, path, opset, weights, properties)
            return
        for file in bundle.stage(path.stem).files:
            shutil.copyfile(bundle.folder / file.path, path.with_name(Path(file.path).name))

    monkeypatch.setattr(exporter, "export_graph", export_graph)
