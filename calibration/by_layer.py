"""Calibration with activations of a bundle that need not fit into memory: layer by layer, under teacher forcing.

The bits of whole images are given. Each layer runs by itself over all launches of all images; its scales are chosen,
its weights rounded and written before the next one is read. What comes out is what a calibration with the whole stage
in memory gives on the same launches.
"""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from bitdance_edge.calibration.errors import CalibrationError
from bitdance_edge.calibration.graphs import StageGraph, read_skeleton, weight_matrix
from bitdance_edge.calibration.kept import damaged_run
from bitdance_edge.calibration.launches import Launches
from bitdance_edge.calibration.layer_report import LayerFindings, write_layer_report
from bitdance_edge.calibration.layer_runs import Entered, Images, LayerRuns
from bitdance_edge.calibration.quantise import Promised, QuantisedGraph, encoded_weight, quantised_graph
from bitdance_edge.calibration.ranges import FORMATS, limit
from bitdance_edge.calibration.recipe import CalibrationRecipe
from bitdance_edge.calibration.resumable import resumable
from bitdance_edge.calibration.segments import Segment, segments
from bitdance_edge.calibration.stage_file import Journal, Lost, write_stage_file
from bitdance_edge.calibration.teacher import TaughtImage, Teacher
from bitdance_edge.calibration.weights import Encoded
from bitdance_edge.calibration.weights_only import CheckedFiles
from bitdance_edge.calibration.write import FOLDER, finish_bundle, require_place, writing, written_stage
from bitdance_edge.runtime.bundle.manifest import Bundle
from bitdance_edge.runtime.bundle.specs import StageSpec
from bitdance_edge.runtime.bundle.stage_names import LOOP_STAGES, StageName

HEAD_PATCHES = 8  # of all images, whose evaluations the head and its modulation are given
EVALUATIONS = 8  # of each
ORDER = (StageName.TOKENS, StageName.TIME, StageName.BACKBONE, StageName.MODULATION, StageName.HEAD)
TAUGHT, FOUND = "launches", "found.jsonl"  # in the folder of a run under way

Cut = Callable[[StageGraph], list[Segment]]


@dataclass(frozen=True, kw_only=True)
class LayerOptions:
    """What is calibrated and on what.

    Attributes:
        images: with their bits; the last ``held_out`` of them only measure errors.
        taught_by: digest of what the images were made from, which a stopped run is found again by.
        cut: how a stage is divided.
    """

    recipe: CalibrationRecipe
    images: Sequence[TaughtImage]
    held_out: int
    taught_by: str
    threads: int | None = None
    force: bool = False
    cut: Cut = segments


def calibrate_by_layer(bundle: Bundle, folder: Path, options: LayerOptions) -> LayerFindings:
    """Write a calibrated copy of ``bundle`` with a report, holding one layer in memory at a time.

    Raises:
        CalibrationError: stages that this is not for, too few images, values that are not finite, or ``folder`` exists.
        BundleError: a file of the bundle is missing or altered.
        StorageError: ``folder`` cannot be written.
    """
    recipe = options.recipe
    recipe.require_stages(bundle)
    if other := [stage for stage in recipe.precisions if stage not in ORDER]:
        raise CalibrationError(
            f"{', '.join(other)} cannot be calibrated layer by layer, only {', '.join(ORDER)}: omit "
            f"{', '.join(f'--{stage}' for stage in other)}"
        )
    if not 0 <= options.held_out < len(options.images):
        raise CalibrationError(
            f"--held-out is {options.held_out} of {len(options.images)} images; scales need one at least"
        )
    require_place(folder, bundle, force=options.force)
    checked = CheckedFiles(bundle)
    graphs = {stage: StageGraph.at(bundle, stage, checked.graph(stage)) for stage in LOOP_STAGES}
    decided_by = bundle.digest, recipe.to_json(), options.taught_by, f"{options.held_out} held out"
    with resumable(folder, *decided_by, force=options.force) as (begun, journal):
        work = _Work(bundle, begun, journal, checked, graphs, options)
        work.teach()
        made = {str(stage): work.stage(stage) for stage in ORDER}
        stages = {name: made.get(name) or work.copied(name) for name in bundle.stages}
        shutil.rmtree(begun / TAUGHT)
        written = finish_bundle(
            bundle, begun, recipe, stages, {"calibrated_by": "layers"}, json.dumps(work.scales(), indent=1) + "\n"
        )
        (begun / FOUND).unlink(missing_ok=True)
        findings = LayerFindings(bundle, written, recipe, work.formats, work.lost, work.errors, work.images)
        write_layer_report(findings, begun / FOLDER)
    return findings


@dataclass
class _Work:
    bundle: Bundle
    folder: Path
    journal: Journal
    checked: CheckedFiles
    graphs: Mapping[str, StageGraph]
    options: LayerOptions
    formats: dict[str, str] = field(default_factory=dict)
    limits: dict[str, float] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    lost: dict[str, Lost] = field(default_factory=dict)

    def __post_init__(self) -> None:
        count, held = len(self.options.images), self.options.held_out
        self.images = Images(count - held, held)
        self.found = Journal.open(self.folder / FOUND)
        for line in self.found.lines:
            self._take(line)

    def scales(self) -> dict[str, dict[str, object]]:
        return {
            name: {"format": number, **({"limit": self.limits[name]} if name in self.limits else {})}
            for name, number in self.formats.items()
        }

    def launches(self, stage: str) -> Launches:
        """What a stage is given."""
        return Launches(self.folder / TAUGHT / stage, stage)

    def teach(self) -> None:
        """Write what tokens, time and backbone are given, and what the head's patches are."""
        stores = {stage: self.launches(stage) for stage in (StageName.TOKENS, StageName.TIME, StageName.BACKBONE)}
        if all(store.complete for store in stores.values()):
            return
        teacher = Teacher(self.bundle, self.graphs, self.options.threads)
        for i, image in enumerate(tqdm(self.options.images, desc="teach", unit="image", leave=False, disable=None)):
            if all(store.has(i) for store in stores.values()):
                continue
            noted = teacher.launches(image)
            for stage, store in stores.items():
                store.write(i, [(0, inputs) for inputs in noted[stage]])
        for store in stores.values():
            store.finish()

    def stage(self, stage: str) -> StageSpec | None:
        """Calibrate a stage that has a precision, and run those that others wait for."""
        graph, precision = self.graphs[stage], self.options.recipe.precisions.get(stage)
        wanted = [name for name in ORDER[ORDER.index(StageName(stage)) :] if name in self.options.recipe.precisions]
        if not wanted or (precision is None and stage not in (StageName.BACKBONE, StageName.MODULATION)):
            return None
        if stage in (StageName.MODULATION, StageName.HEAD):
            self._teach_head(stage)
        runs = self._runs(graph)
        made = None if precision is None else self._calibrated(graph, precision, runs)
        if stage == StageName.BACKBONE and set(wanted) & {StageName.MODULATION, StageName.HEAD}:
            runs.finish()
        if stage == StageName.MODULATION and StageName.HEAD in wanted:
            runs.finish()
        return made

    def _runs(self, graph: StageGraph) -> LayerRuns:
        given = self.launches(graph.stage)
        return LayerRuns(
            graph=graph,
            parts=self.options.cut(graph),
            folder=self.folder / TAUGHT,
            given=given,
            images=self.images,
            recipe=self.options.recipe,
            threads=self.options.threads,
        )

    def _calibrated(self, graph: StageGraph, precision: str, runs: LayerRuns) -> StageSpec:
        stage, recipe, spec = graph.stage, self.options.recipe, self.bundle.stage(graph.stage)
        formats = {layer.name: layer.format_for(precision) for layer in graph.layers if layer.name not in recipe.kept}
        self.formats |= formats
        rounding = [layer for layer in graph.layers if layer.name in formats and layer.rounds_input(precision)]
        path = self.folder / "onnx" / precision / f"{stage}.onnx"

        def encoded(tensor: Promised) -> Encoded:
            return self._encoded(graph, tensor, runs)

        def graph_of(limits: Mapping[str, float]) -> QuantisedGraph:
            return quantised_graph(graph, formats, limits)

        with writing(self.folder):
            self.lost |= write_stage_file(
                path,
                graph_of({layer.name: 1.0 for layer in rounding}),  # limits follow when every layer has run
                graph.folder,
                encoded,
                self.journal,
                finished=lambda: graph_of({layer.name: self._limit(layer.name) for layer in rounding}),
            )
        return written_stage(self.folder, path, spec, precision)

    def _encoded(self, graph: StageGraph, tensor: Promised, runs: LayerRuns) -> Encoded:
        layer, recipe = tensor.layer, self.options.recipe
        entered = runs.entered(layer.name)
        segment = next(part for part in runs.parts if layer in part.layers)
        for each in segment.layers:
            if (
                each.name in self.formats
                and each.name not in self.limits
                and each.rounds_input(recipe.precisions[graph.stage])
            ):
                histogram, number = entered.activations[each.name].histogram, FORMATS[self.formats[each.name]]
                reached = limit(histogram, recipe.calibrator, recipe.percentile, number)
                self._note({"layer": each.name, "limit": reached or 1.0})  # only zeros came: any scale holds them
        products = entered.activations[layer.name].products
        known = {} if products is None else {layer.name: products}
        made = encoded_weight(graph, layer, tensor.precision, known, self.options.threads)
        if layer.name in entered.held:
            self._note({"layer": layer.name, "error": self._error(graph, tensor, made, entered)})
        return made

    def _error(self, graph: StageGraph, tensor: Promised, made: Encoded, entered: Entered) -> float:
        """Root mean square error of a layer's output on held-out rows, over that of the output."""
        layer, rows = tensor.layer, entered.held[tensor.layer.name]
        weight = weight_matrix(graph, layer)[0]
        rounded = rows
        if layer.name in self.limits:
            rounded = FORMATS[tensor.precision].rounded(rows.astype(np.float64), self.limits[layer.name])
        rounded = rounded.astype(np.float32)
        sums = np.zeros(2)
        for part in np.array_split(np.arange(len(weight)), max(1, weight.size >> 22)):
            want = rows @ weight[part].astype(np.float32).T
            got = rounded @ made.values_of(part).T
            sums += np.square(got - want, dtype=np.float64).sum(), np.square(want, dtype=np.float64).sum()
        return float(np.sqrt(sums[0] / sums[1])) if sums[1] else 0.0

    def _note(self, line: dict[str, object]) -> None:
        self.found.add(line)
        self._take(line)

    def _limit(self, layer: str) -> float:
        if layer not in self.limits:
            raise damaged_run(self.folder, f"{self.found.path} lacks what was found of {layer}")
        return self.limits[layer]

    def _take(self, line: Mapping[str, object]) -> None:
        kept = self.limits if "limit" in line else self.errors
        kept[str(line["layer"])] = float(str(line.get("limit", line.get("error"))))

    def _teach_head(self, stage: str) -> None:
        """Write what modulation, or the head, is given: some evaluations of some patches of every image."""
        store = self.launches(stage)
        if store.complete:
            return
        before = StageName.BACKBONE if stage == StageName.MODULATION else StageName.MODULATION
        behind = self._runs(self.graphs[before]).finish()
        teacher = Teacher(self.bundle, self.graphs, self.options.threads)
        for i, image in enumerate(self.options.images):
            handed = list(behind.of(i)) if stage == StageName.HEAD else []
            conditions = {} if handed else {sample.launch: sample.inputs["condition"] for sample in behind.of(i)}
            launches = []
            for place, evaluations in enumerate(teacher.evaluations(image, self._patches(image), EVALUATIONS)):
                if stage == StageName.MODULATION:
                    inputs = {
                        "time_embeddings": evaluations.time_embeddings,
                        "condition": conditions[evaluations.patch],
                    }
                    launches.append((0, inputs))
                    continue
                names = [tensor.name for tensor in self.bundle.stage(StageName.MODULATION).outputs]
                modulations = {name: handed[place].inputs[name] for name in names}
                for evaluation in range(len(evaluations.steps)):
                    launches.append((0, evaluations.head_inputs(evaluation, modulations)))
            store.write(i, launches)
        store.finish()

    def _patches(self, image: TaughtImage) -> list[int]:
        """Patches of an image whose evaluations are taken, evenly spaced."""
        patches = self.bundle.model.size(image.request.size).patches
        count = max(1, min(patches, -(-HEAD_PATCHES // self.images.seen)))
        return [int(patch) for patch in np.linspace(0, patches - 1, count + 2)[1:-1].round()]

    def copied(self, name: str) -> StageSpec:
        """Copy a stage as exported."""
        spec, source = self.bundle.stage(name), self.checked.graph(name)
        path = self.folder / "onnx" / spec.precision / f"{name}.onnx"
        made = QuantisedGraph(read_skeleton(source), {})

        def nothing_promised(tensor: Promised) -> Encoded:
            raise AssertionError("a copied graph promises nothing")

        with writing(self.folder):
            write_stage_file(path, made, source.parent, nothing_promised, self.journal)
        return written_stage(self.folder, path, spec, spec.precision)
