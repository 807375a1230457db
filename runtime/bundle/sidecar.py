"""The sidecar of an engine: a JSON file beside it that says what it was built from, with and for.

An engine is opened only after its sidecar was found to match the bundle, the library and the GPU; TensorRT itself
would crash on, or silently run, some of what is refused here. Knows files and names, imports no TensorRT.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import ModuleType
from typing import Any

from bitdance_edge.runtime.bundle.manifest import Bundle, sha256
from bitdance_edge.runtime.errors import EngineError

FORMAT = 1
ENGINES = "engines"


@dataclass(frozen=True, kw_only=True)
class Sidecar:
    stage: str
    target: str  # as given to ``bitdance-edge build --target``
    library: str  # "tensorrt_rtx" or "tensorrt"
    library_version: str
    capabilities: tuple[str, ...]  # GPUs it was built for, as compute capabilities
    device: str  # the GPU it was built on, "" where none is needed
    onnx: Mapping[str, str]  # file of the bundle -> SHA-256
    max_images: int
    profiles: Mapping[str, Mapping[str, list[list[int]]]]  # profile -> input -> smallest, likeliest, largest shape
    precision: str  # element types of the graph: "int8+fp16"
    layers: Mapping[str, Mapping[str, int]]  # layer kind -> element type -> layers, as parsed, before fusion
    options: Mapping[str, Any]
    bytes: int
    sha256: str
    seconds: float  # parsing and building

    @classmethod
    def read(cls, engine: Path) -> "Sidecar":
        """The sidecar of an engine file.

        Raises:
            EngineError: there is none, or it is not whole.
        """
        path = sidecar_path(engine)
        rebuild = "build the engine again with: bitdance-edge build BUNDLE --target TARGET --force"
        try:
            data = json.loads(path.read_text())
        except FileNotFoundError:
            raise EngineError(f"{engine} has no sidecar {path.name}, so nothing says what it is; {rebuild}") from None
        except (OSError, ValueError) as error:
            raise EngineError(f"{path} cannot be read ({error}); {rebuild}") from None
        if not isinstance(data, dict) or data.pop("format", None) != FORMAT:
            raise EngineError(f"{path} is not a sidecar of format {FORMAT}; {rebuild}")
        if data.keys() != {field.name for field in fields(cls)}:
            raise EngineError(f"{path} lacks fields or has unknown ones: another version wrote it; {rebuild}")
        return cls(**{**data, "capabilities": tuple(data["capabilities"])})

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n"


def sidecar_path(engine: Path) -> Path:
    return engine.with_suffix(".json")


def engine_path(bundle: Bundle, target_folder: str, stage: str) -> Path:
    """Where the engine of a stage lies: beside the ONNX files, one folder a target."""
    return bundle.folder / ENGINES / target_folder / f"{stage}.engine"


def onnx_hashes(bundle: Bundle, stage: str) -> dict[str, str]:
    """The files that a stage's engine is made from, as the manifest names and hashes them."""
    return {file.path: file.sha256 for file in bundle.stage(stage).files}


def mismatch(sidecar: Sidecar, bundle: Bundle, library_version: str) -> str | None:
    """Why an engine is not of this bundle and library, or None; its bytes are not looked at."""
    if sidecar.onnx != onnx_hashes(bundle, sidecar.stage):
        return "it was built from another export of this stage"
    if sidecar.library_version != library_version:
        return f"it was built by {sidecar.library} {sidecar.library_version}, and {library_version} is installed"
    return None


def damage(sidecar: Sidecar, engine: Path) -> str | None:
    """Why the engine's bytes are not those that were built, or None."""
    if not engine.is_file():
        return "the file is missing"
    if (size := engine.stat().st_size) != sidecar.bytes:
        return f"the file has {size} bytes, its sidecar says {sidecar.bytes}: it is truncated or altered"
    if sha256(engine) != sidecar.sha256:
        return "the file was altered: its SHA-256 is not the one in its sidecar"
    return None


def other_device(sidecar: Sidecar, capability: str) -> str | None:
    """Why an engine is not for a GPU of this compute capability, or None.

    A target that names its GPUs is held to them. The default target is not: which other GPUs can run it, only the
    library knows, and ``refuse_invalid`` asks it.
    """
    if sidecar.target != "rtx" and capability not in sidecar.capabilities:
        return f"it was built for compute capability {', '.join(sidecar.capabilities)}, and this GPU has {capability}"
    return None


def require_fit(bundle: Bundle, engine: Path, trt: ModuleType, capability: str) -> Sidecar:
    """Refuse an engine that this bundle, library or GPU cannot use, before it is deserialised.

    Args:
        trt: the imported library, ``tensorrt`` or ``tensorrt_rtx``.
        capability: compute capability of the GPU, "8.9".

    Raises:
        EngineError: with the reason and the command that builds it anew.
    """
    sidecar = Sidecar.read(engine)
    reason = damage(sidecar, engine) or mismatch(sidecar, bundle, trt.__version__)
    if reason is None and sidecar.library != trt.__name__:
        reason = f"it is for {sidecar.library}, and {trt.__name__} is to run it"
    if reason := reason or other_device(sidecar, capability):
        raise EngineError(f"{engine} is refused: {reason}; {rebuild_command(bundle, sidecar)}")
    return sidecar


def rebuild_command(bundle: Bundle, sidecar: Sidecar) -> str:
    images = f" --max-images {sidecar.max_images}" if sidecar.max_images != 1 else ""
    return f"rebuild it with: bitdance-edge build {bundle.folder} --target {sidecar.target}{images}"


def refuse_invalid(engine: Path, trt: ModuleType, logger: Any) -> None:
    """Ask the library whether it could run an engine, from the file's header alone (TensorRT-RTX).

    https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest: ``Runtime.get_engine_validity`` gives a verdict and
    ``EngineInvalidityDiagnostics`` as bits. Without a driver it gives no bits, which tells that from a broken file.

    Raises:
        EngineError: it is not an engine, or not one for this library, driver or GPU.
    """
    runtime = trt.Runtime(logger)
    with engine.open("rb") as file:
        validity, found = runtime.get_engine_validity(file.read(runtime.engine_header_size))
    if validity != trt.EngineValidity.INVALID:
        return
    bits = trt.EngineInvalidityDiagnostics
    reasons = {
        bits.MALFORMED_ENGINE: f"it is no engine of {trt.__name__}: copy or build it again",
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
    raise EngineError(f"{engine} cannot be used: {'; '.join(named)}")
