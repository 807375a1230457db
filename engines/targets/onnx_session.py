"""One graph by itself on ONNX Runtime's CPU provider, as a function of its inputs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bitdance_edge.engines.failure import BuildFailure
from bitdance_edge.engines.targets.interface import Run
from bitdance_edge.runtime.backends.onnxruntime import cpu_options, import_onnxruntime, memory_errors
from bitdance_edge.runtime.errors import BitDanceError, StorageError

UNWRITTEN = "Failed to write"  # in ONNX Runtime's message when the optimised graph does not fit on the disk


def open_session(graph: Path, precision: str, *, optimised: bool = False) -> Any:
    """A session of a graph.

    Args:
        precision: of the stage, as the manifest has it.
        optimised: the graph was optimised when it was built, and is loaded unchanged.

    Raises:
        BuildFailure: ONNX Runtime refuses the graph.
        OutOfMemoryError: it does not fit into memory.
    """
    options = cpu_options(0, precision)
    if optimised:
        options.graph_optimization_level = import_onnxruntime().GraphOptimizationLevel.ORT_DISABLE_ALL
    return load(graph, options)


def open_model(model: bytes, folder: Path, precision: str, name: str) -> Any:
    """A session of a graph in memory, whose weights are in files below ``folder``; errors are those of ``load``."""
    options = cpu_options(0, precision)
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    return _session(model, name, options)


def load(graph: Path, options: Any) -> Any:
    """A session with these options, which may have ONNX Runtime write the optimised graph.

    Raises:
        BuildFailure: ONNX Runtime refuses the graph.
        OutOfMemoryError: it does not fit into memory.
        StorageError: the optimised graph cannot be written.
    """
    return _session(str(graph), graph.name, options)


def _session(source: str | bytes, name: str, options: Any) -> Any:
    ort = import_onnxruntime()
    try:
        with memory_errors():
            return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except BitDanceError:
        raise
    except Exception as error:  # onnxruntime's exceptions share no base class of their own
        reason = str(error).strip()
        if UNWRITTEN in reason:
            raise StorageError(
                f"ONNX Runtime cannot write {options.optimized_model_filepath}: free some space on that disk ({reason})"
            ) from error
        raise BuildFailure(f"ONNX Runtime {ort.__version__} refuses {name}: {reason.splitlines()[0]}") from error


def run_of(session: Any) -> Run:
    """A session as a function of its inputs."""
    names = [output.name for output in session.get_outputs()]

    def run(inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        return dict(zip(names, session.run(names, dict(inputs)), strict=True))

    return run
