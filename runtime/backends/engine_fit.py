"""Whether a TensorRT engine fits: bundle, library and GPU by its record, and the file itself by the library's word."""

from pathlib import Path
from types import ModuleType
from typing import Any

from bitdance_edge.runtime.bundle.manifest import Bundle
from bitdance_edge.runtime.bundle.record import BuildRecord, record_path
from bitdance_edge.runtime.errors import BuildError

ANY_GPU = "rtx"  # target whose engines run on more GPUs than it names: the library decides


def engine_path(folder: Path, stage: str) -> Path:
    """The engine of a stage in a target's folder."""
    return folder / f"{stage}.engine"


def other_gpu(record: BuildRecord, capability: str) -> str | None:
    """Why an engine is not for a GPU of this compute capability, or None.

    A target that names its GPUs is for these alone. Which others can run the default target, only the library knows:
    ``refuse_invalid`` asks it.
    """
    if record.target != ANY_GPU and capability not in record.devices:
        return f"it was built for compute capability {', '.join(record.devices)}, and this GPU has {capability}"
    return None


def require_fit(bundle: Bundle, folder: Path, stage: str, trt: ModuleType, capability: str) -> BuildRecord:
    """Refuse an engine that this bundle, library or GPU cannot use, before it is deserialised.

    Args:
        trt: the imported library, ``tensorrt`` or ``tensorrt_rtx``.
        capability: compute capability of the GPU, "8.9".

    Raises:
        BuildError: with the reason and the command that builds it anew.
    """
    record = BuildRecord.read(record_path(folder, stage))
    reason = record.damage(folder) or record.mismatch(bundle, trt.__version__)
    if reason is None and record.library != trt.__name__:
        reason = f"it is for {record.library}, and {trt.__name__} is to run it"
    if reason := reason or other_gpu(record, capability):
        raise BuildError(f"{engine_path(folder, stage)} is refused: {reason}; {record.rebuild_command(bundle)}")
    return record


def refuse_invalid(engine: Path, trt: ModuleType, logger: Any) -> None:
    """Ask the library whether it could run an engine, from the file's header alone (TensorRT-RTX).

    https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest: ``Runtime.get_engine_validity`` gives a verdict and
    ``EngineInvalidityDiagnostics`` as bits. Without a driver it gives no bits, which tells that from a broken file.

    Raises:
        BuildError: it is not an engine, or not one for this library, driver or GPU.
    """
    runtime = trt.Runtime(logger)
    with engine.open("rb") as file:
        validity, found = runtime.get_engine_validity(file.read(runtime.engine_header_size))
    if validity != trt.EngineValidity.INVALID:
        return
    bits = trt.EngineInvalidityDiagnostics
    reasons = {
        bits.MALFORMED_ENGINE: f"it is not an engine of {trt.__name__}: copy or build it again",
        bits.VERSION_MISMATCH: f"another version of {trt.__name__} built it; {trt.__version__} is installed",
        bits.UNSUPPORTED_CC: "it was not built for the GPU of this machine",
        bits.OLD_CUDA_DRIVER: "the NVIDIA driver is too old for it",
        bits.OLD_CUDA_RUNTIME: "the CUDA runtime is too old for it",
        bits.INSUFFICIENT_GPU_MEMORY: "the GPU has too little memory for it",
        bits.CUDA_ERROR: "CUDA reported an error",
    }
    named = [text for bit, text in reasons.items() if found & int(bit)]
    if not named:
        named = ["no NVIDIA driver answers on this machine, so no engine can run here; the file itself looks whole"]
    raise BuildError(f"{engine} cannot be used: {'; '.join(named)}")
