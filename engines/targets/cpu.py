"""``--target cpu``: graphs as ONNX Runtime has them once it has loaded a stage, written down for the next time."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from bitdance_edge.runtime.backends.onnxruntime import cpu_options, import_onnxruntime
from bitdance_edge.runtime.backends.processor import instructions
from bitdance_edge.runtime.bundle.files import put_in_place, staged_folder
from bitdance_edge.runtime.bundle.manifest import Bundle
from bitdance_edge.runtime.bundle.prepared import (
    FOLDER,
    Prepared,
    PreparedFile,
    graph_path,
    prepared_graph,
    record_path,
)
from bitdance_edge.runtime.bundle.sidecar import onnx_hashes
from bitdance_edge.runtime.errors import EngineError

INLINE_UP_TO = 1024  # bytes; larger weights are kept beside the graph, from where they are mapped


def unprepared(bundle: Bundle, stages: Sequence[str]) -> list[str]:
    """Those of the stages that have no graph that fits and is whole."""
    version = import_onnxruntime().__version__
    return [stage for stage in stages if prepared_graph(bundle, stage, version) is None]


def prepare(bundle: Bundle, stages: Sequence[str]) -> list[Prepared]:
    """Write the graphs of ``stages`` into the bundle, in place of all that were there.

    Raises:
        EngineError: there is no room, or the folder cannot be written.
        BundleError: a file of the bundle is not whole.
    """
    folder = bundle.folder / FOLDER
    needed, free = sum(bundle.stage(stage).bytes for stage in stages), shutil.disk_usage(bundle.folder).free
    if needed > free:
        raise EngineError(f"{folder} takes about {needed / 1e6:.0f} MB, and {free / 1e6:.0f} MB are free")
    try:
        with staged_folder(folder) as staged:
            made = [_prepare(bundle, stage, staged) for stage in tqdm(stages, unit="stage", leave=False, disable=None)]
            for record in made:
                record_path(staged, record.stage).write_text(record.to_json())
            put_in_place(staged, folder)
    except OSError as error:
        raise EngineError(f"cannot write {folder}: {error.strerror or error}") from error
    return made


def _prepare(bundle: Bundle, stage: str, folder: Path) -> Prepared:
    ort, source, path = import_onnxruntime(), bundle.verified(stage), graph_path(folder, stage)
    weights = path.with_name(f"{path.name}.data")
    options = cpu_options(1, bundle.stage(stage).precision)
    options.optimized_model_filepath = str(path)
    for name, value in (("file_name", weights.name), ("min_size_in_bytes", str(INLINE_UP_TO))):
        options.add_session_config_entry(f"session.optimized_model_external_initializers_{name}", value)
    ort.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
    return Prepared(
        stage=stage,
        onnxruntime=ort.__version__,
        instructions=instructions(),
        onnx=onnx_hashes(bundle, stage),
        files=tuple(PreparedFile.of(file) for file in (path, weights) if file.exists()),
    )
