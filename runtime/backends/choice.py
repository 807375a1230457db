"""Which backend runs a bundle here: the best that is present, and for each of the others the reason why not."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from bitdance_edge.runtime.backends.cuda_device import CudaDevice, import_pycuda
from bitdance_edge.runtime.backends.device import Device, find_device, free_memory
from bitdance_edge.runtime.backends.interface import Backend
from bitdance_edge.runtime.backends.onnxruntime import OnnxRuntimeBackend, Place, import_onnxruntime
from bitdance_edge.runtime.backends.processor import int8_path
from bitdance_edge.runtime.backends.tensorrt import TensorRTBackend
from bitdance_edge.runtime.backends.tensorrt_library import load_library
from bitdance_edge.runtime.bundle.manifest import Bundle
from bitdance_edge.runtime.bundle.sidecar import ENGINES, Sidecar, engine_path, mismatch, other_device, refuse_invalid
from bitdance_edge.runtime.errors import BackendError, EngineError

TARGETS = {"tensorrt": "trt:current", "tensorrt_rtx": "rtx"}  # library -> the target that is built for it by default
ON_GPU = (*TARGETS, "onnxruntime-cuda")
NAMES = (*ON_GPU, "onnxruntime-cpu")  # best first
NEEDED = ("prompt", "tokens", "time", "backbone", "modulation", "head", "decoder")  # of a target, to be taken


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What runs a bundle, and what does not."""

    backend: str
    device: str  # "cpu", or "cuda:0 (its name)"
    target: str = ""  # folder of the engines
    max_images: int | None = None  # that the engines take at once
    free_bytes: int | None = None  # of the GPU's memory, before anything was taken of it
    files: Mapping[str, int] = field(default_factory=dict)  # stage -> bytes of its engine
    rejected: Mapping[str, str] = field(default_factory=dict)  # backend -> why not
    arithmetic: str = ""  # of quantised stages on a CPU: which instructions they take, and why

    def lines(self) -> Iterator[str]:
        engines = f", engines of {self.target}" if self.target else ""
        yield f"{self.backend} on {self.device}{engines}"
        if self.arithmetic:
            yield f"  {self.arithmetic}"
        for name, reason in self.rejected.items():
            yield f"  not {name}: {reason}"


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What was asked for: ``Pipeline.open``'s arguments, checked."""

    backends: tuple[str, ...]  # to be tried, best first
    ordinal: int
    threads: int | None
    trace: Path | None

    @classmethod
    def parse(cls, device: str, backend: str | None, threads: int | None, trace: Path | None) -> "Wanted":
        """Read device and backend by name.

        Raises:
            BackendError: one is unknown, or they exclude each other.
        """
        kind, _, number = device.partition(":")
        if device not in ("auto", "cpu", "cuda") and not (kind == "cuda" and number.isdecimal()):
            raise BackendError(f"device is {device!r}; it must be 'auto', 'cpu', 'cuda' or 'cuda:N'")
        if backend is not None and backend not in NAMES:
            raise BackendError(f"backend is {backend!r}; it must be one of {', '.join(NAMES)}")
        possible = {"auto": NAMES, "cpu": ("onnxruntime-cpu",)}.get(device, ON_GPU)
        if backend is not None and backend not in possible:
            raise BackendError(f"backend {backend!r} does not run on device {device!r}; leave one of them away")
        names = possible if backend is None else (backend,)
        if trace is not None and backend is None:
            names = tuple(name for name in names if name not in TARGETS)  # an operator trace is ONNX Runtime's
        if trace is not None and backend in TARGETS:
            raise BackendError(f"{backend} writes no operator trace; use: bitdance-edge profile")
        return cls(backends=names, ordinal=int(number or 0), threads=threads, trace=trace)


def choose_backend(bundle: Bundle, wanted: Wanted) -> tuple[Backend, Choice]:
    """Open the first backend that can run the bundle.

    Raises:
        BackendError: none can; with the reason of each.
    """
    device = find_device(ordinal=wanted.ordinal)
    rejected: dict[str, str] = {}
    for name in wanted.backends:
        try:
            backend, choice = _open(name, bundle, wanted, device)
        except (BackendError, EngineError) as error:
            rejected[name] = str(error)
        else:
            return backend, replace(choice, rejected=rejected)
    if len(rejected) == 1:
        raise BackendError(next(iter(rejected.values())))
    raise BackendError(f"no backend can run {bundle.folder}: " + "; ".join(f"{k}: {v}" for k, v in rejected.items()))


def survey(bundle: Bundle) -> Iterator[str]:
    """For each backend, whether it would run the bundle on this machine; opens them one by one."""
    for name in NAMES:
        wanted = Wanted(backends=(name,), ordinal=0, threads=None, trace=None)
        try:
            backend, choice = choose_backend(bundle, wanted)
        except (BackendError, EngineError) as error:
            yield f"{name}: no: {error}"
        else:
            backend.close()
            yield f"{name}: yes, on {choice.device}" + (f"; {choice.arithmetic}" if choice.arithmetic else "")


def _open(name: str, bundle: Bundle, wanted: Wanted, device: Device | None) -> tuple[Backend, Choice]:
    if name == "onnxruntime-cpu":
        backend = OnnxRuntimeBackend(bundle, wanted.threads, wanted.trace)
        quantised = any("int8" in stage.precision for stage in bundle.stages.values())
        arithmetic = int8_path().why if quantised else ""
        return backend, Choice(backend=backend.name, device="cpu", arithmetic=arithmetic)
    if device is None:
        raise BackendError(f"no NVIDIA driver answers for a GPU {wanted.ordinal} on this machine")
    if name == "onnxruntime-cuda":
        return _onnxruntime_on_gpu(bundle, wanted, device)
    return _engines(bundle, wanted, name, device)


def _onnxruntime_on_gpu(bundle: Bundle, wanted: Wanted, device: Device) -> tuple[Backend, Choice]:
    if "CUDAExecutionProvider" not in import_onnxruntime().get_available_providers():
        raise BackendError(
            "the onnxruntime that is installed is for the CPU: pip uninstall onnxruntime, then pip install "
            "'bitdance-edge[gpu]'"
        )
    backend = OnnxRuntimeBackend(bundle, wanted.threads, wanted.trace, Place("cuda", wanted.ordinal))
    return backend, Choice(backend=backend.name, device=_named(device, wanted), free_bytes=free_memory(wanted.ordinal))


def _engines(bundle: Bundle, wanted: Wanted, library: str, device: Device) -> tuple[Backend, Choice]:
    loaded = load_library(library)
    import_pycuda()
    folder, sidecars = _find_engines(bundle, library, loaded.version, device)
    if loaded.judges_engines:  # whether the library runs on this GPU at all, before another backend is passed over
        refuse_invalid(engine_path(bundle, folder, "time"), loaded.trt, loaded.logger)
    free = free_memory(wanted.ordinal)
    backend = TensorRTBackend(bundle, loaded, folder, CudaDevice(wanted.ordinal), device.capability)
    return backend, Choice(
        backend=backend.name,
        device=_named(device, wanted),
        target=folder,
        max_images=min(sidecar.max_images for sidecar in sidecars.values()),
        free_bytes=free,
        files={name: sidecar.bytes for name, sidecar in sidecars.items()},
    )


def _find_engines(bundle: Bundle, library: str, version: str, device: Device) -> tuple[str, dict[str, Sidecar]]:
    """The folder whose engines fit library and GPU, as far as their sidecars say; made for fewer GPUs first."""
    reasons = []
    found: list[tuple[int, str, dict[str, Sidecar]]] = []
    for folder in sorted(path for path in (bundle.folder / ENGINES).glob("*") if path.is_dir()):
        try:
            sidecars = {name: Sidecar.read(folder / f"{name}.engine") for name in NEEDED}
        except EngineError as error:
            reasons.append(str(error))
            continue
        if any(sidecar.library != library for sidecar in sidecars.values()):
            continue
        for name, sidecar in sidecars.items():
            if unfit := mismatch(sidecar, bundle, version) or other_device(sidecar, device.capability):
                reasons.append(f"{folder.name}/{name}.engine: {unfit}")
                break
        else:
            found.append((len(sidecars["backbone"].capabilities), folder.name, sidecars))
    if not found:
        why = f" ({'; '.join(reasons)})" if reasons else ""
        raise BackendError(
            f"{bundle.folder} has no engines for it{why}; build them with: bitdance-edge build {bundle.folder} "
            f"--target {TARGETS[library]}"
        )
    _, name, sidecars = min(found, key=lambda item: item[:2])
    return name, sidecars


def _named(device: Device, wanted: Wanted) -> str:
    return f"cuda:{wanted.ordinal} ({device.name}, compute capability {device.capability})"
