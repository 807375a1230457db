"""Which backend runs a bundle here: the best that is present, and for each of the others the reason why not."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from bitdance_edge.runtime.backends.cuda_device import CudaDevice, import_pycuda
from bitdance_edge.runtime.backends.device import Device, find_device, free_memory
from bitdance_edge.runtime.backends.engine_fit import engine_path, other_gpu, refuse_invalid
from bitdance_edge.runtime.backends.interface import Backend
from bitdance_edge.runtime.backends.onnxruntime import CPU_TARGET, OnnxRuntimeBackend, import_onnxruntime
from bitdance_edge.runtime.backends.onnxruntime_cuda import PROVIDER, TARGET, OnnxRuntimeCudaBackend
from bitdance_edge.runtime.backends.openvino import OpenVinoBackend
from bitdance_edge.runtime.backends.processor import int8_path
from bitdance_edge.runtime.backends.streamed_weights import StreamedWeights
from bitdance_edge.runtime.backends.tensorrt import TensorRTBackend
from bitdance_edge.runtime.backends.tensorrt_library import load_library
from bitdance_edge.runtime.bundle.manifest import Bundle
from bitdance_edge.runtime.bundle.record import BuildRecord, built_folders, record_path
from bitdance_edge.runtime.bundle.stage_names import GENERATING_STAGES, StageName
from bitdance_edge.runtime.errors import BackendError, BuildError
from bitdance_edge.runtime.values import shown

TARGETS = {"tensorrt": "trt:current", "tensorrt_rtx": "rtx"}  # library -> the target that is built for it by default
ON_GPU = (*TARGETS, "onnxruntime-cuda")
# What a device is run by, best first; "cuda:N" as "cuda". Only who asks for bfloat16 gets it.
RUN_BY = {
    "auto": (*ON_GPU, "onnxruntime-cpu"),
    "cpu": ("onnxruntime-cpu",),
    "cpu:bf16": ("openvino",),
    "cuda": ON_GPU,
}
NAMES = (*RUN_BY["auto"], *RUN_BY["cpu:bf16"])
TRACED = ("onnxruntime-cuda", "onnxruntime-cpu")  # by an operator trace, which is ONNX Runtime's
ORDINAL = re.compile("[0-9]{1,4}")


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What runs a bundle, and what does not."""

    backend: str
    device: str  # "cpu", or "cuda:0 (its name)"
    target: str = ""  # whose builds run
    built: tuple[str, ...] = ()  # stages that run as they were built for it
    threads: int | None = None  # of each graph on a CPU; None: one a physical core, or 1 for a small model
    advice: str = ""  # what a build for this device would bring
    max_images: int | None = None  # that the engines take at once
    free_bytes: int | None = None  # of the GPU's memory, before anything was taken of it
    # Stage -> bytes of its engine that the GPU must hold: none where its weights are streamed.
    files: Mapping[str, int] = field(default_factory=dict)
    streamed: StreamedWeights | None = None  # where an engine streams its weights
    rejected: Mapping[str, str] = field(default_factory=dict)  # backend -> why not
    arithmetic: str = ""  # of quantised stages on a CPU: which instructions they take, and why
    # On a GPU: which stages can be part of a CUDA graph, whether a patch is one, and why not; filled as they are used.
    graphs: Mapping[str, str] = field(default_factory=dict)

    def lines(self) -> Iterator[str]:
        built = f", {len(self.built)} stages as built for {self.target}" if self.built else ""
        yield f"{self.backend} on {self.device}{built}"
        if self.advice:
            yield f"  {self.advice}"
        if self.arithmetic:
            yield f"  {self.arithmetic}"
        for what, state in self.graphs.items():
            yield f"  {what}: {state}"
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
        numbered = kind == "cuda" and ORDINAL.fullmatch(number) is not None
        if device not in RUN_BY and not numbered:
            raise BackendError(f"device is {shown(device)}; it must be 'auto', 'cpu', 'cpu:bf16', 'cuda' or 'cuda:N'")
        if backend is not None and backend not in NAMES:
            raise BackendError(f"backend is {shown(backend)}; it must be one of {', '.join(NAMES)}")
        possible = NAMES if device == "auto" and backend is not None else RUN_BY[kind if numbered else device]
        if backend is not None and backend not in possible:
            raise BackendError(f"backend {backend!r} does not run on device {device!r}; omit one of them")
        names = possible if backend is None else (backend,)
        if trace is not None:
            names = tuple(name for name in names if name in TRACED)
            if not names:
                other = "bitdance-edge profile" if backend in TARGETS else "the device cpu"
                raise BackendError(f"{backend or device} writes no operator trace; use {other}")
        return cls(backends=names, ordinal=int(number) if numbered else 0, threads=threads, trace=trace)


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
        except (BackendError, BuildError) as error:
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
        except (BackendError, BuildError) as error:
            yield f"{name}: no: {error}"
        else:
            backend.close()
            yield "; ".join(filter(None, (f"{name}: yes, on {choice.device}", choice.arithmetic, choice.advice)))


def _open(name: str, bundle: Bundle, wanted: Wanted, device: Device | None) -> tuple[Backend, Choice]:
    if name == "onnxruntime-cpu":
        return _onnxruntime_on_cpu(bundle, wanted)
    if name == "openvino":
        return _openvino(bundle, wanted)
    if device is None:
        raise BackendError(f"no NVIDIA driver answers for a GPU {wanted.ordinal} on this machine")
    if name == "onnxruntime-cuda":
        return _onnxruntime_on_gpu(bundle, wanted, device)
    return _engines(bundle, wanted, name, device)


def _onnxruntime_on_cpu(bundle: Bundle, wanted: Wanted) -> tuple[Backend, Choice]:
    backend = OnnxRuntimeBackend(bundle, wanted.threads, wanted.trace)
    quantised = any("int8" in stage.precision for stage in bundle.stages.values())
    built, target = backend.built, CPU_TARGET
    advice = ""
    if not built.records:
        float32 = any(stage.precision == "fp32" for stage in bundle.stages.values())
        faster = ", and runs its float32 stages in the forms that are fastest here" if float32 else ""
        advice = f"bitdance-edge build {bundle.folder} --target {target} opens this bundle at once{faster}"
    elif built.passed_over:
        stages = ", ".join(f"{stage} ({reason})" for stage, reason in built.passed_over.items())
        advice = f"not used as built: {stages}; again with: bitdance-edge build {bundle.folder} --target {target}"
    return backend, Choice(
        backend=backend.name,
        device="cpu",
        target=target if built.records else "",
        built=tuple(built.records),
        advice=advice,
        files={name: record.bytes for name, record in built.records.items()},
        arithmetic=int8_path().why if quantised else "",
    )


def _openvino(bundle: Bundle, wanted: Wanted) -> tuple[Backend, Choice]:
    backend = OpenVinoBackend(bundle, wanted.threads)
    built = {name: record for name, record in backend.host.built.records.items() if name not in backend.faster}
    return backend, Choice(
        backend=backend.name,
        device="cpu",
        target=CPU_TARGET if built else "",
        built=tuple(built),
        arithmetic=f"products of {', '.join(backend.faster)} in bfloat16, except where OpenVINO lacks an operator",
        advice="taken for the device cpu:bf16 alone",
    )


def _onnxruntime_on_gpu(bundle: Bundle, wanted: Wanted, device: Device) -> tuple[Backend, Choice]:
    if PROVIDER not in import_onnxruntime().get_available_providers():
        raise BackendError(
            "the onnxruntime that is installed is for the CPU: pip uninstall onnxruntime, then pip install "
            "'bitdance-edge[gpu]'"
        )
    free = free_memory(wanted.ordinal)
    backend = OnnxRuntimeCudaBackend(bundle, wanted.ordinal, wanted.threads, wanted.trace)
    built = backend.built
    return backend, Choice(
        backend=backend.name,
        device=_named(device, wanted),
        target=TARGET if built.records else "",
        built=tuple(built.records),
        advice="" if built.records else _cuda_advice(bundle),
        free_bytes=free,
        files={name: record.bytes for name, record in built.records.items()},
        graphs=backend.graphs,
    )


def _cuda_advice(bundle: Bundle) -> str:
    return (
        f"bitdance-edge build {bundle.folder} --target cuda takes fewer launches, and runs decoder and encoder "
        "on the GPU from the first node to the last"
    )


def _engines(bundle: Bundle, wanted: Wanted, library: str, device: Device) -> tuple[Backend, Choice]:
    loaded = load_library(library)
    import_pycuda()
    folder, records = _find_engines(bundle, library, loaded.version, device)
    if loaded.judges_engines:  # whether the library runs on this GPU at all, before another backend is passed over
        refuse_invalid(engine_path(folder, StageName.TIME), loaded.trt, loaded.logger)
    free = free_memory(wanted.ordinal)
    streamed = StreamedWeights()
    backend = TensorRTBackend(bundle, loaded, folder, CudaDevice(wanted.ordinal), device.capability, streamed)
    return backend, Choice(
        backend=backend.name,
        device=_named(device, wanted),
        target=next(iter(records.values())).target,
        built=tuple(records),
        max_images=min(record.max_images or 1 for record in records.values()),
        free_bytes=free,
        files={name: 0 if record.streams_weights else record.bytes for name, record in records.items()},
        streamed=streamed if any(record.streams_weights for record in records.values()) else None,
        graphs=backend.graphs,
    )


def _find_engines(bundle: Bundle, library: str, version: str, device: Device) -> tuple[Path, dict[str, BuildRecord]]:
    """The folder whose engines fit library and GPU, as far as their records say; made for fewer GPUs first."""
    reasons = []
    found: list[tuple[int, Path, dict[str, BuildRecord]]] = []
    for folder in built_folders(bundle):
        try:
            records = {name: BuildRecord.read(record_path(folder, name)) for name in _needed(bundle)}
        except BuildError as error:
            if list(folder.glob("*.engine")):
                reasons.append(str(error))
            continue
        if any(record.library != library for record in records.values()):
            continue
        for name, record in records.items():
            if unfit := record.mismatch(bundle, version) or other_gpu(record, device.capability):
                reasons.append(f"{folder.name}/{name}.engine: {unfit}")
                break
        else:
            found.append((len(records[StageName.DECODER].devices), folder, records))
    if not found:
        why = f" ({'; '.join(reasons)})" if reasons else ""
        raise BackendError(
            f"{bundle.folder} has no engines for it{why}; build them with: bitdance-edge build {bundle.folder} "
            f"--target {TARGETS[library]}"
        )
    _, chosen, records = min(found, key=lambda item: item[:2])
    return chosen, records


def _named(device: Device, wanted: Wanted) -> str:
    return f"cuda:{wanted.ordinal} ({device.name}, compute capability {device.capability})"


def _needed(bundle: Bundle) -> tuple[str, ...]:
    """The stages without which a bundle is not run on engines: all that its images take."""
    return GENERATING_STAGES if bundle.model.generates else tuple(bundle.stages)
