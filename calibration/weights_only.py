"""Weights alone: every matrix of some stages rounded as it is read from the bundle's files, without running anything.

The bundle may be far larger than the memory: one matrix is read, rounded and written at a time. Its element type is
that of its graphs, whatever a CPU computes in. A run that was stopped goes on behind the last matrix that it wrote.
"""

import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from glob import escape
from pathlib import Path

from tqdm import tqdm

from bitdance_edge.calibration.errors import CalibrationError
from bitdance_edge.calibration.graphs import StageGraph, read_skeleton
from bitdance_edge.calibration.quantise import Promised, QuantisedGraph, encoded_weight, quantised_graph, rounded_bytes
from bitdance_edge.calibration.recipe import CalibrationRecipe
from bitdance_edge.calibration.resumable import resumable
from bitdance_edge.calibration.stage_file import Journal, Lost, write_stage_file
from bitdance_edge.calibration.weights import Encoded
from bitdance_edge.calibration.weights_report import WeightFindings, write_weights_report
from bitdance_edge.calibration.write import FOLDER, finish_bundle, require_place, writing, written_stage
from bitdance_edge.runtime.bundle.manifest import Bundle
from bitdance_edge.runtime.bundle.specs import FileSpec, StageSpec
from bitdance_edge.runtime.bundle.stage_names import LOOP_STAGES


@dataclass(frozen=True)
class WeightsOptions:
    """What is rounded, and where it goes; only ``recipe`` changes a code.

    Attributes:
        threads: that round; None: one a core.
    """

    recipe: CalibrationRecipe
    threads: int | None = None
    force: bool = False


def calibrate_weights(bundle: Bundle, folder: Path, options: WeightsOptions) -> WeightFindings:
    """Write a copy of ``bundle`` with rounded weights and a report; nothing is run.

    Raises:
        CalibrationError: nothing to round, a weight that is not finite, or ``folder`` exists.
        BundleError: a file of the bundle is missing or altered.
        StorageError: ``folder`` cannot be written.
    """
    recipe = options.recipe
    recipe.require_stages(bundle)
    require_place(folder, bundle, force=options.force)
    checked = CheckedFiles(bundle)
    graphs = {stage: StageGraph.at(bundle, stage, checked.graph(stage)) for stage in recipe.precisions}
    formats = {stage: weight_formats(graph, recipe) for stage, graph in graphs.items()}
    total = sum(spec.weight_bytes for spec in bundle.stages.values())
    _require_space(bundle, folder, graphs, formats)
    with (
        resumable(folder, bundle.digest, recipe.to_json(), force=options.force) as (begun, journal),
        tqdm(total=total, unit="B", unit_scale=True, leave=False, disable=None) as progress,
    ):
        writer = _Writer(bundle, begun, journal, checked, options.threads, progress)
        stages = {
            name: writer.stage(name, graphs.get(name), formats.get(name, {}), recipe.precisions.get(name))
            for name in bundle.stages
        }
        written = finish_bundle(bundle, begun, recipe, stages, {"calibrated_by": "weights only"})
        layers = {layer.name: layer for graph in graphs.values() for layer in graph.layers}
        named = {name: number for found in formats.values() for name, number in found.items()}
        findings = WeightFindings(bundle, written, recipe, layers, named, writer.lost)
        write_weights_report(findings, begun / FOLDER)
    return findings


def of_the_loop(recipe: CalibrationRecipe, named: Collection[str]) -> CalibrationRecipe:
    """Leave out of a recipe the stages that turn whole images into bits and back, unless they were ``named``."""
    kept = {
        stage: precision for stage, precision in recipe.precisions.items() if stage in LOOP_STAGES or stage in named
    }
    return replace(recipe, precisions=kept)


def weight_formats(graph: StageGraph, recipe: CalibrationRecipe) -> dict[str, str]:
    """Layer -> format of all matrices of a stage; convolutions gain nothing from it and stay as exported.

    Raises:
        CalibrationError: the stage has no matrix, or the recipe keeps them all.
    """
    precision = recipe.precisions[graph.stage]
    products = [layer for layer in graph.layers if layer.operator != "Conv"]
    found = {layer.name: layer.format_for(precision) for layer in products if layer.name not in recipe.kept}
    if not found:
        raise CalibrationError(
            f"{graph.stage} has no matrix to round, so by its weights alone it stays as exported: omit "
            f"--{graph.stage}, or calibrate it with activations, without --weights-only"
        )
    return found


def _require_space(
    bundle: Bundle, folder: Path, graphs: Mapping[str, StageGraph], formats: Mapping[str, Mapping[str, str]]
) -> None:
    """Refuse before the work what would not fit on the disk.

    Raises:
        CalibrationError: with what it takes and what is free.
    """
    needed = sum(spec.bytes for spec in bundle.stages.values())
    for stage, graph in graphs.items():
        needed += sum(
            rounded_bytes(layer, formats[stage][layer.name]) - layer.weight_bytes
            for layer in graph.layers
            if layer.name in formats[stage]
        )
    begun = sum(path.stat().st_size for path in folder.parent.glob(f".{escape(folder.name)}.calibrating-*/**/*.data"))
    free = shutil.disk_usage(next(parent for parent in folder.absolute().parents if parent.exists())).free
    if needed - begun > free:
        raise CalibrationError(
            f"{folder} takes {needed / 1e6:.0f} MB and {free / 1e6:.0f} MB are free on that disk; free some space, or "
            "write to another one"
        )


class CheckedFiles:
    """Files of a bundle, each compared with the manifest once, though several stages read it."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle, self._known = bundle, set[FileSpec]()

    def graph(self, stage: str) -> Path:
        """The path of a stage's graph, whose files are those of the manifest.

        Raises:
            BundleError: a file is missing or altered.
        """
        spec = self.bundle.stage(stage)
        for file in tqdm(spec.files, desc=f"check {stage}", unit="file", leave=False, disable=None):
            if file not in self._known:
                self.bundle.verified_file(file)
                self._known.add(file)
        return self.bundle.folder / spec.graph.path


@dataclass
class _Writer:
    bundle: Bundle
    folder: Path
    journal: Journal
    checked: CheckedFiles
    threads: int | None
    progress: tqdm

    def __post_init__(self) -> None:
        self.lost: dict[str, Lost] = {}

    def stage(
        self, name: str, graph: StageGraph | None, formats: Mapping[str, str], precision: str | None
    ) -> StageSpec:
        """Write one stage: rounded, or copied where it has no precision."""
        spec, source = self.bundle.stage(name), self.checked.graph(name)
        made = QuantisedGraph(read_skeleton(source), {}) if graph is None else quantised_graph(graph, formats, {})
        path = self.folder / "onnx" / (precision or spec.precision) / f"{name}.onnx"

        def encoded(tensor: Promised) -> Encoded:
            assert graph is not None, "a copied graph promises nothing"
            return encoded_weight(graph, tensor.layer, tensor.precision, {}, self.threads)

        def note(unit: str, size: int) -> None:
            self.progress.set_description(f"{name} {unit}"[:48])
            self.progress.update(size)

        with writing(self.folder):
            self.lost |= write_stage_file(path, made, source.parent, encoded, self.journal, note)
        return written_stage(self.folder, path, spec, precision or spec.precision)
