"""Step 4, write: the calibrated bundle on disk, its graphs, recipe, scales and manifest.

What was recorded of the bundle, and what was built of it for devices, is not copied: neither is of the new one.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from bitdance_edge.calibration.choose import Chosen
from bitdance_edge.calibration.errors import CalibrationError
from bitdance_edge.calibration.graphs import read_skeleton
from bitdance_edge.calibration.measure import StageLoss
from bitdance_edge.calibration.quantise import QuantisedGraph
from bitdance_edge.calibration.recipe import CalibrationRecipe
from bitdance_edge.calibration.stage_file import Journal, write_stage_file
from bitdance_edge.runtime.bundle.files import cannot_write, put_in_place, staged_folder
from bitdance_edge.runtime.bundle.manifest import MANIFEST, Bundle, file_spec
from bitdance_edge.runtime.bundle.specs import StageSpec
from bitdance_edge.runtime.window_measure import with_measured_window

JOURNAL = "written.jsonl"  # of a bundle being written; removed when it is complete
WINDOW_PATCHES = 4  # of each setting that the windowed sampler is measured on again
FOLDER = "calibration"  # of a calibrated bundle: its recipe, scales and report


@contextmanager
def replacing(folder: Path, *, force: bool) -> Iterator[Path]:
    """Give a new folder to fill, and put it in the place of ``folder`` afterwards; after an error it is removed.

    Raises:
        StorageError: the folder cannot be made, or not be put in place.
    """
    with ExitStack() as stack:
        with writing(folder):
            staged = stack.enter_context(staged_folder(folder))
        yield staged
        with writing(folder):
            put_in_place(staged, folder, replace=force)


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Raise StorageError where the code inside, which only writes, cannot write to ``folder``."""
    try:
        yield
    except OSError as error:
        raise cannot_write(folder, error) from error


def write_bundle(bundle: Bundle, folder: Path, recipe: CalibrationRecipe, chosen: Chosen) -> Bundle:
    """Write the calibrated bundle into ``folder``; every stage gets a file of weights of its own.

    Args:
        recipe: with all layers that are kept.
        chosen: without them.

    Raises:
        StorageError: the folder cannot be written.
    """
    stages = {name: _write_stage(bundle, name, folder, recipe, chosen) for name in bundle.stages}
    (folder / JOURNAL).unlink(missing_ok=True)
    return finish_bundle(bundle, folder, recipe, stages, {}, _scales(chosen))


def require_place(folder: Path, bundle: Bundle, *, force: bool) -> None:
    """Check, before any work, that a calibrated bundle may be written to a folder.

    Raises:
        CalibrationError: it is or is in the bundle that is calibrated, or exists and is no bundle to replace.
    """
    source = Path(os.path.realpath(bundle.folder))  # Path.resolve would raise for links in a circle
    if Path(os.path.realpath(folder)).is_relative_to(source):
        raise CalibrationError(f"{folder} is in {bundle.folder}, which is calibrated; write to another folder")
    if os.path.lexists(folder) and not (force and (folder / MANIFEST).is_file()):
        raise CalibrationError(f"{folder} exists; write to another folder, or replace a bundle with --force")


def finish_bundle(
    bundle: Bundle,
    folder: Path,
    recipe: CalibrationRecipe,
    stages: Mapping[str, StageSpec],
    provenance: Mapping[str, str],
    scales: str | None = None,
) -> Bundle:
    """Write what belongs to a calibrated bundle beside its stages, the manifest last.

    Args:
        stages: as they were written into ``folder``.
        provenance: added to that of ``bundle``.
        scales: content of ``scales.json``; None: the bundle has none.

    Raises:
        StorageError: the folder cannot be written.
    """
    carried = [bundle.text.tokenizer] if bundle.text is not None else []
    carried += [bundle.fast_preview] if bundle.fast_preview is not None else []
    files = {folder / file.path: bundle.verified_file(file) for file in carried}
    made_with = {package: version(package) for package in ("bitdance-edge", "onnx", "onnxruntime")}
    made = {**provenance, "calibrated_from": bundle.digest, "calibrated_with": made_with}
    with writing(folder):
        for path, source in files.items():
            shutil.copyfile(source, path)
        (folder / FOLDER).mkdir(exist_ok=True)
        (folder / FOLDER / "recipe.json").write_text(recipe.to_json(), encoding="utf-8")
        if scales is not None:
            (folder / FOLDER / "scales.json").write_text(scales, encoding="utf-8")
        replace(
            bundle,
            folder=folder,
            name=f"{bundle.name}-{recipe.name}",
            stages=stages,
            links={},
            provenance={**bundle.provenance, **made},
        ).write()
    return with_measured_window(Bundle.open(folder), WINDOW_PATCHES)


def _write_stage(bundle: Bundle, name: str, folder: Path, recipe: CalibrationRecipe, chosen: Chosen) -> StageSpec:
    """Write one graph with its weights, quantised if any of its layers are."""
    source, stage, variants = bundle.verified(name), bundle.stage(name), chosen.variants
    if formats := chosen.formats_of([name]):
        made, precision = variants.quantised(name, formats), recipe.precisions[name]
    else:
        made, precision = QuantisedGraph(read_skeleton(source), {}), stage.precision
    path = folder / "onnx" / precision / f"{name}.onnx"
    with writing(folder):
        journal = Journal.open(folder / JOURNAL)
        write_stage_file(
            path, made, source.parent, lambda tensor: variants.encoded(tensor.layer, tensor.precision), journal
        )
    return written_stage(folder, path, stage, precision)


def written_stage(folder: Path, path: Path, stage: StageSpec, precision: str) -> StageSpec:
    """Describe a stage that was written to ``path``."""
    weights = path.with_name(f"{path.name}.data")
    files = (file_spec(folder, weights),) if weights.exists() else ()
    size = sum(file.bytes for file in files)
    described = replace(stage, graph=file_spec(folder, path), weights=files, weight_bytes=size, precision=precision)
    return described if precision == stage.precision else replace(described, max_error=None)


def write_errors(written: Bundle, losses: Mapping[str, StageLoss]) -> None:
    """Write the largest error of calibrated stages, against the same stage as exported, into the manifest."""
    stages = {
        name: replace(stage, max_error=losses[name].largest, tolerance=2 * losses[name].largest)
        if name in losses
        else stage
        for name, stage in written.stages.items()
    }
    with writing(written.folder):
        replace(written, stages=stages).write()


def _scales(chosen: Chosen) -> str:
    """Give every quantised layer's format and, where its input or its result is rounded, the limit of that scale."""
    limits = {"limit": chosen.variants.limits, "result_limit": chosen.variants.results}
    scales = {
        name: {"format": number, **{key: known[name] for key, known in limits.items() if name in known}}
        for name, number in chosen.formats.items()
    }
    return json.dumps(scales, indent=1) + "\n"
