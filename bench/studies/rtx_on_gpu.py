"""Does a default-target TensorRT-RTX engine load and run on the GPU at hand, and does it agree with ONNX Runtime?

The support matrix of TensorRT-RTX omits compute capability 9.0 (H100, H200), while one page says "8.0 and later"; this
script tests it. On any GPU it also checks engines that were built without one.

    python bench/studies/rtx_on_gpu.py prepare BUNDLE --folder gpu-check  # anywhere; builds what is not up to date
    python bench/studies/rtx_on_gpu.py run --folder gpu-check           # on the GPU machine, with Python 3.11 and numpy

``prepare --with-library`` also puts TensorRT-RTX itself into the folder, compressed by xz (61 MiB, some minutes), for a
machine without a network; ``run`` unpacks and uses it. The last line of ``run`` is JSON, to be recorded word for word.
"""

import argparse
import ctypes
import json
import lzma
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

# The head, and the backbone with its cache in place: the two stages that take nearly all the time.
STAGES = ("head", "backbone")
LIBRARY_PACKAGES = ("tensorrt_rtx", "tensorrt_rtx_bindings", "tensorrt_rtx_libs")
XZ_FILTERS = [
    {"id": lzma.FILTER_X86},
    {"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": 1 << 28},
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["prepare", "run"])
    parser.add_argument("bundle", nargs="?")
    parser.add_argument("--folder", type=Path, default=Path("gpu-check"))
    parser.add_argument("--with-library", action="store_true")
    args = parser.parse_args()
    if args.part == "run":
        print(json.dumps(run(args.folder), indent=None))
        return
    prepare(args.bundle, args.folder)
    if args.with_library:
        pack_library(args.folder / "library")


def prepare(bundle_path: str, folder: Path) -> None:
    """Write engines, recorded inputs and ONNX Runtime's outputs."""
    from bitdance_edge.engines.samples import record_samples
    from bitdance_edge.runtime import Bundle
    from bitdance_edge.runtime.backends.engine_fit import engine_path
    from bitdance_edge.runtime.backends.onnxruntime import cpu_options, import_onnxruntime
    from bitdance_edge.runtime.bundle.record import BuildRecord, record_path, target_folder

    build = ["build", bundle_path, "--target", "rtx", "--stages", ",".join(STAGES)]
    subprocess.run([sys.executable, "-m", "bitdance_edge", *build], check=True)
    bundle = Bundle.open(bundle_path)
    folder.mkdir(parents=True, exist_ok=True)
    samples = []
    for (stage, sample), inputs in record_samples(bundle).items():
        if stage not in STAGES:
            continue
        session = import_onnxruntime().InferenceSession(str(bundle.verified(stage)), cpu_options())
        names = [tensor.name for tensor in bundle.stage(stage).outputs]
        outputs = dict(zip(names, session.run(names, inputs), strict=True))
        name = f"{stage}-{sample}"
        np.savez(
            folder / f"{name}.npz",
            **{f"in:{k}": v for k, v in inputs.items()},
            **{f"out:{k}": v for k, v in outputs.items()},
        )
        engine = engine_path(target_folder(bundle, "rtx"), stage)
        shutil.copyfile(engine, folder / engine.name)
        profile = list(BuildRecord.read(record_path(engine.parent, stage)).profiles).index(sample)
        samples.append(
            {"name": name, "engine": engine.name, "profile": profile, "tolerance": bundle.stage(stage).tolerance}
        )
    (folder / "samples.json").write_text(json.dumps(samples, indent=1), encoding="utf-8")
    print(f"{folder}: {', '.join(sample['name'] for sample in samples)}")


def pack_library(folder: Path) -> None:
    """Compress the installed TensorRT-RTX, ONNX parser included, because the Python module is linked to it."""
    import tensorrt_rtx

    site = Path(tensorrt_rtx.__file__).parents[1]
    for path in (path for package in LIBRARY_PACKAGES for path in (site / package).rglob("*") if path.is_file()):
        if "__pycache__" in path.parts:
            continue
        target = folder / f"{path.relative_to(site)}.xz"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(lzma.compress(path.read_bytes(), format=lzma.FORMAT_XZ, filters=XZ_FILTERS))
        print(f"{target}: {target.stat().st_size / 2**20:.1f} MiB", flush=True)


def unpack_library(folder: Path) -> None:
    for packed in folder.rglob("*.xz"):
        path = packed.with_suffix("")
        if not path.exists():
            path.write_bytes(lzma.decompress(packed.read_bytes()))
    sys.path.insert(0, str(folder))


def run(folder: Path) -> dict:
    """Load and run each sample; every outcome is reported, refusals too."""
    if (folder / "library").is_dir():
        unpack_library(folder / "library")
    import tensorrt_rtx as trt

    said: list[str] = []

    class Logger(trt.ILogger):
        def log(self, severity, message) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR, trt.ILogger.WARNING):
                said.append(f"{severity.name}: {message}")

    report: dict = {"tensorrt_rtx": trt.__version__, "results": [], "said": said}
    try:
        cuda = Cuda()
    except OSError as error:
        return {**report, "outcome": f"no CUDA driver: {error}"}
    report |= {"gpu": cuda.name, "compute_capability": cuda.capability}
    runtime = trt.Runtime(Logger())
    for sample in json.loads((folder / "samples.json").read_text(encoding="utf-8")):
        report["results"].append({"sample": sample["name"], **run_sample(trt, runtime, cuda, folder, sample)})
    return report


def run_sample(trt, runtime, cuda: "Cuda", folder: Path, sample: dict) -> dict:
    plan = (folder / sample["engine"]).read_bytes()
    validity, diagnostics = runtime.get_engine_validity(plan[: runtime.engine_header_size])
    outcome: dict = {"validity": validity.name, "diagnostics": diagnostics}
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        return {**outcome, "outcome": "does not load"}
    context = engine.create_execution_context()
    if context is None:
        return {**outcome, "outcome": "loads, but gives no execution context"}
    data = dict(np.load(folder / f"{sample['name']}.npz"))
    stream = cuda.stream()
    context.set_optimization_profile_async(sample["profile"], stream)
    memory, aliased = {}, {}
    for i in range(engine.num_io_tensors):
        name = engine.get_tensor_name(i)
        if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT:
            memory[name] = cuda.upload(data[f"in:{name}"])
            context.set_input_shape(name, data[f"in:{name}"].shape)
        elif past := engine.get_aliased_input_tensor(name):
            aliased[name] = past
        else:
            memory[name] = cuda.upload(np.zeros_like(data[f"out:{name}"]))
    memory |= {name: memory[past] for name, past in aliased.items()}
    for name, address in memory.items():
        context.set_tensor_address(name, address)
    if not context.execute_async_v3(stream):
        return {**outcome, "outcome": "loads, but does not run"}
    cuda.synchronize(stream)
    errors = {name: relative(cuda.download(memory[name], want), want) for name, want in outputs_of(data)}
    worst = max(errors.values())
    agrees = "agrees with" if worst <= sample["tolerance"] else "differs from"
    return {
        **outcome,
        "outcome": f"runs and {agrees} ONNX Runtime",
        "largest_error": worst,
        "allowed": sample["tolerance"],
        "cache_in_place": len(aliased),
    }


def outputs_of(data: dict) -> list:
    return [(key.removeprefix("out:"), values) for key, values in data.items() if key.startswith("out:")]


def relative(got: np.ndarray, want: np.ndarray) -> float:
    """Largest difference relative to the largest value; infinite where a value is not finite."""
    got, want = got.astype(np.float64), want.astype(np.float64)
    return float(np.abs(got - want).max() / (np.abs(want).max() or 1.0)) if np.isfinite(got).all() else float("inf")


class Cuda:
    """What this needs of the CUDA driver API (cuda.h), on the first GPU's primary context."""

    def __init__(self) -> None:
        self.driver = ctypes.CDLL("libcuda.so.1")
        device, context, major, minor = (ctypes.c_int(), ctypes.c_void_p(), ctypes.c_int(), ctypes.c_int())
        name = ctypes.create_string_buffer(100)
        self._call("cuInit", 0)
        self._call("cuDeviceGet", ctypes.byref(device), 0)
        self._call("cuDeviceGetName", name, len(name), device)
        self._call("cuDeviceGetAttribute", ctypes.byref(major), 75, device)
        self._call("cuDeviceGetAttribute", ctypes.byref(minor), 76, device)
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self._call("cuCtxSetCurrent", context)
        self.name, self.capability = name.value.decode(), f"{major.value}.{minor.value}"

    def _call(self, function: str, *arguments) -> None:
        if status := getattr(self.driver, function)(*arguments):
            raise OSError(f"{function} gave CUDA error {status}")

    def stream(self) -> int:
        stream = ctypes.c_void_p()
        self._call("cuStreamCreate", ctypes.byref(stream), 1)  # CU_STREAM_NON_BLOCKING
        return stream.value or 0

    def synchronize(self, stream: int) -> None:
        self._call("cuStreamSynchronize", ctypes.c_void_p(stream))

    def upload(self, values: np.ndarray) -> int:
        address, values = ctypes.c_uint64(), np.ascontiguousarray(values)
        self._call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(values.nbytes))
        self._call("cuMemcpyHtoD_v2", address, ctypes.c_void_p(values.ctypes.data), ctypes.c_size_t(values.nbytes))
        return address.value

    def download(self, address: int, like: np.ndarray) -> np.ndarray:
        values = np.empty_like(like)
        self._call(
            "cuMemcpyDtoH_v2",
            ctypes.c_void_p(values.ctypes.data),
            ctypes.c_uint64(address),
            ctypes.c_size_t(values.nbytes),
        )
        return values


if __name__ == "__main__":
    main()
