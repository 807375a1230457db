"""Everything that only a GPU can show, in one run: each row is printed, and the JSON rewritten, as soon as it is known.

    python bench/studies/gpu_check.py --tokens bundles/digits-* --speed B-16x=FULL/B-16x --batches 1,8,64
    python bench/studies/gpu_check.py --device cpu --tokens bundles/digits-4x --speed tiny=tiny --batches 1,2 --steps 4

``--tokens`` compares the tokens of each backend with those of ONNX Runtime on the CPU. ``--speed MODEL=BUNDLE`` times
stages and patches of each backend, and compares them with the floor set by the machine's copy and product rates, with
PyTorch as its authors run it (``gpu_reference.py``) and with our stages in PyTorch captured as one graph a patch
(``gpu_ceiling.py``), both on random weights. ``bench/studies/gpu_check.md`` says what to bring and what to expect.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from gpu_floors import Machine, measure_machine
from gpu_report import Report
from gpu_timing import time_kernels, time_patches, time_stages

from bitdance_edge.runtime import Bundle, Pipeline, Request
from bitdance_edge.runtime.backends.choice import NAMES, ON_GPU, survey
from bitdance_edge.runtime.backends.device import find_device, free_memory
from bitdance_edge.runtime.backends.onnxruntime_cuda import OnnxRuntimeCudaBackend
from bitdance_edge.runtime.bundle.specs import CLASS_CONDITIONAL
from bitdance_edge.runtime.bundle.stage_names import StageName

SEED = 1
WINDOW = 8
CPU, CUDA = "onnxruntime-cpu", "onnxruntime-cuda"


def main() -> None:
    args = arguments()
    if args.device == "cuda" and find_device() is None:
        raise SystemExit("no NVIDIA driver answers on this machine; --device cpu runs what a CPU can show")
    speed = [(model, path) for model, _, path in (pair.partition("=") for pair in args.speed)]
    require_models([model for model, _ in speed])
    names = args.backends or (list(ON_GPU) if args.device == "cuda" else [CPU])
    if CUDA in names:
        names = [*names, *(f"{CUDA}:{captures}" for captures in args.captures if captures != "patch")]
    report = Report(args.json)
    report.set("gpu", asdict(found) if (found := find_device()) else None)
    for path in (*args.tokens, *(path for _, path in speed)):
        bundle = Bundle.open(path)
        report.set(f"backends for {bundle.name}", list(survey(bundle)))
    for path in args.tokens:
        report.extend("tokens", compare_tokens(path, names, args, report))
    if speed:
        machine = None
        with report.failures.kept("rates of the machine, and with them the floors"):
            machine = measure_machine(args.device)
            report.set("machine", asdict(machine))
        for model, path in speed:
            time_model(model, path, names, machine, args, report)
        compare_speeds(report)
    print(f"\nwritten to {args.json}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--device", choices=["cuda", "cpu"], default="cuda")
    add("--tokens", nargs="*", default=[], metavar="BUNDLE", help="compared with the CPU's tokens")
    add("--speed", nargs="*", default=[], metavar="MODEL=BUNDLE", help="timed, and compared with PyTorch")
    add("--backends", nargs="*", choices=NAMES, help="default: all that run on the device")
    add(
        "--captures",
        nargs="*",
        choices=["patch", "stages", "none"],
        default=["patch"],
        help="what ONNX Runtime's CUDA graphs hold; all are measured (default patch)",
    )
    add("--batches", default="1", help="images at once, comma-separated (default 1)")
    add("--windows", default="1", help="head evaluations in one pass, comma-separated (default 1)")
    add("--steps", type=int, help="sampling steps (default: the bundle's)")
    add("--patches", type=int, help="patches of an image that are timed (default: all)")
    add("--images", type=int, default=10, help="images whose tokens are compared (default 10)")
    add("--compile", action="store_true", help="also PyTorch's reference under torch.compile: minutes a model")
    add(
        "--kernels",
        type=int,
        default=0,
        metavar="N",
        help="also the N kernels of a patch, and of the decoder, that take longest",
    )
    add("--no-reference", action="store_true", help="omit PyTorch")
    add("--json", type=Path, default=Path("gpu_check.json"), help="rewritten after every row (default gpu_check.json)")
    return parser.parse_args()


def require_models(names: list[str]) -> None:
    if names:
        from gpu_reference import MODELS

        for name in names:
            if name not in MODELS:
                raise SystemExit(f"{name} is no model; it must be one of {', '.join(MODELS)}")


def opened(path: str, name: str, images: int | None = None) -> Pipeline:
    """A pipeline on a backend by name; behind a colon, what its CUDA graphs hold."""
    name, _, captures = name.partition(":")
    pipeline = Pipeline.open(path, backend=name, max_batch=images)
    if captures:
        assert isinstance(pipeline.backend, OnnxRuntimeCudaBackend)
        pipeline.backend.captures = captures  # type: ignore[assignment]  before anything is loaded
    return pipeline


def request_for(bundle: Bundle, images: int, steps: int | None) -> Request:
    request = replace(Request.example(bundle), seed=SEED, steps=steps, output="tokens", window=1)
    if bundle.model.kind == CLASS_CONDITIONAL:
        return replace(request, classes=[i % bundle.model.num_classes for i in range(images)])
    return replace(request, count=images)


def requests_for(bundle: Bundle, args: argparse.Namespace) -> dict[str, Request]:
    """What is compared: plain, in windows where the bundle has them, and changes of images of random tokens."""
    plain = request_for(bundle, args.images, args.steps)
    model, size = bundle.model, bundle.model.default_size
    rng = np.random.default_rng(SEED)
    init = np.where(rng.random((args.images, size.tokens, model.bits)) < 0.5, -1, 1).astype(np.int8)
    half = np.arange(size.tokens).reshape(size.grid_height, size.grid_width) < size.tokens // 2
    windows = {f"in windows of {WINDOW}": replace(plain, window=WINDOW)} if bundle.window is not None else {}
    return {
        "plain": plain,
        **windows,
        "varied": replace(plain, init=init, strength=0.6),
        "half of it redrawn": replace(plain, init=init, mask=half),
    }


def compare_tokens(path: str, names: list[str], args: argparse.Namespace, report: Report) -> Iterator[dict[str, Any]]:
    """A row for each request and backend; the first also compares what the decoder makes of the CPU's tokens."""
    bundle = Bundle.open(path)
    requests, wanted, pixels = requests_for(bundle, args), {}, np.zeros(())
    with report.failures.kept(f"tokens of {bundle.name} on {CPU}"), Pipeline.open(path, backend=CPU) as pipeline:
        for title, request in requests.items():
            wanted[title] = np.stack([image.tokens for image in pipeline.generate(request)])
        pixels = pipeline.decode(wanted["plain"])
    for name in names if wanted else ():
        with report.failures.kept(f"tokens of {bundle.name} on {name}"), opened(path, name) as pipeline:
            for title, request in requests.items():
                found = np.stack([image.tokens for image in pipeline.generate(request)])
                differ = (found != wanted[title]).any(axis=(1, 2))
                yield {
                    "bundle": bundle.name,
                    "backend": name,
                    "precision": bundle.stage(StageName.HEAD).precision,
                    "request": title,
                    "images": len(differ),
                    "the same": int((~differ).sum()),
                    "bits different": int((found != wanted[title]).sum()),
                    "of bits": found.size,
                    "without graph": without_graph(pipeline),
                }
            apart = np.abs(pipeline.decode(wanted["plain"]).astype(int) - pixels)
            report.add(
                "pixels",
                {"bundle": bundle.name, "backend": name, "largest": int(apart.max()), "mean": float(apart.mean())},
            )


def without_graph(pipeline: Pipeline) -> dict[str, str]:
    """What is not a CUDA graph, and why."""
    return {what: state for what, state in pipeline.choice.graphs.items() if state.startswith("not")}


def time_model(
    model: str, path: str, names: list[str], machine: Machine | None, args: argparse.Namespace, report: Report
) -> None:
    """Time a model on each backend and in PyTorch; its files are hashed once a backend, whatever the batches."""
    batches = sorted(map(int, args.batches.split(",")))
    for name in names:
        before = free_memory() if args.device == "cuda" else None
        with (
            report.failures.kept(f"{model} on {name}"),
            opened(path, name, batches[-1]) as pipeline,
        ):
            windows = sorted(map(int, args.windows.split(",")))
            time_pipeline(model, name, pipeline, batches, machine, before, args, report, windows)
    if not args.no_reference:
        time_reference(model, batches, args, report)
        time_ceiling(model, path, batches, machine, args, report)


def time_pipeline(
    model: str,
    name: str,
    pipeline: Pipeline,
    batches: list[int],
    machine: Machine | None,
    before: int | None,
    args: argparse.Namespace,
    report: Report,
    windows: Sequence[int] = (1,),
) -> None:
    for images in batches:
        labels = {"model": model, "images": images, "backend": name}
        request = request_for(pipeline.bundle, images, args.steps)
        for window in windows:
            with report.failures.kept(f"{model}, {images} images at once in windows of {window} on {name}"):
                timed = time_patches(pipeline, replace(request, window=window), args.patches)
                patches = {**labels, "window": window, **timed}
                patches["peak MB"] = taken_mb(before)
                report.add("patches", {**patches, "without graph": without_graph(pipeline)})
        for row in time_stages(pipeline, request, machine, report.failures):
            report.add("stages", {**labels, **row})
        plan = pipeline.loaded.plan
        planned = None if plan is None else plan.held / 1e6
        report.add("memory", {**labels, "with the decoder MB": taken_mb(before), "plan MB": planned})
        if args.kernels:
            with report.failures.kept(f"kernels of {model}, {images} images at once on {name}"):
                for row in time_kernels(pipeline, request, args.kernels):
                    report.add("kernels", {**labels, **row})


def taken_mb(before: int | None) -> float | None:
    """What the driver has less than before, its context not included.

    A peak, for batches grow: arenas are emptied ahead of larger launches only.
    """
    return None if before is None else (before - (free_memory() or before)) / 1e6


def time_reference(model: str, batches: list[int], args: argparse.Namespace, report: Report) -> None:
    """PyTorch as published: float32 weights of the class-conditional models, bfloat16 of the language model."""
    import torch
    from gpu_reference import MODELS, measure, random_model

    dtype = torch.bfloat16 if model == "14B-64x" else torch.float32
    steps = MODELS[model].sampling.steps if args.steps is None else args.steps
    for compiled in (False, True) if args.compile else (False,):
        name = "PyTorch, compiled" if compiled else "PyTorch, eager"
        with report.failures.kept(f"{model} on {name}"):
            made = random_model(model, args.device, dtype)  # of its own: compiling changes a model
            for images in batches:
                found = measure(model, made, images, steps, compiled, args.patches)
                report.add("patches", {"model": model, "images": images, "backend": name, **reference_row(found)})


def reference_row(found: Any) -> dict[str, Any]:
    return {"ms a patch": found.ms_per_patch, "s an image": found.seconds_per_image, "peak MB": found.peak_mb}


def time_ceiling(
    model: str, path: str, batches: list[int], machine: Machine | None, args: argparse.Namespace, report: Report
) -> None:
    """Our stages in PyTorch, in the bundle's element type, each patch one CUDA graph."""
    import torch
    from gpu_ceiling import torch_pipeline
    from gpu_reference import random_model

    bundle = Bundle.open(path)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}.get(bundle.stage(StageName.HEAD).precision, torch.float16)
    with report.failures.kept(f"{model} in PyTorch, captured"):
        made = random_model(model, args.device, torch.float32 if model != "14B-64x" else dtype).to(dtype)
        with torch_pipeline(bundle, made, batches[-1]) as pipeline:
            time_pipeline(model, pipeline.backend.name, pipeline, batches, machine, None, args, report)


def compare_speeds(report: Report) -> None:
    """Each backend's patches, relative to each PyTorch run of the same model and batch."""
    rows = report.values.get("patches", [])
    for row in rows:
        others = [o for o in rows if o["backend"].startswith("PyTorch") and o is not row]
        found = {
            f"x {other['backend'].removeprefix('PyTorch, ')}": other["ms a patch"] / row["ms a patch"]
            for other in others
            if (other["model"], other["images"]) == (row["model"], row["images"])
        }
        if found and not row["backend"].startswith("PyTorch"):
            report.add("speed", {**{name: row[name] for name in ("model", "images", "backend")}, **found})


if __name__ == "__main__":
    main()
