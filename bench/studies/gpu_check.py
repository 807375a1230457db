"""Everything that only a GPU can show, in one run: a table for each part, and one JSON line at the end.

    python bench/studies/gpu_check.py --tokens bundles/digits-* --speed B-4x=FULL/B-4x B-16x=FULL/B-16x --batches 1,8,64
    python bench/studies/gpu_check.py --device cpu --tokens bundles/digits-4x --speed tiny=tiny --batches 1,2 --steps 4

``--tokens`` compares the tokens of each backend with those of ONNX Runtime on the CPU. ``--speed MODEL=BUNDLE`` times
stages and patches of each backend, and compares them with the floor set by the machine's copy and product rates and
with PyTorch on random weights of that model (``bench/studies/gpu_reference.py``). ``bench/studies/gpu_check.md`` says
what to bring, in which order to run, and what each part should show.
"""

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from gpu_floors import Machine, measure_machine, stage_cost

from bitdance_edge.runtime import BitDanceError, Bundle, PatchDone, Pipeline, Request
from bitdance_edge.runtime.backends.choice import NAMES, ON_GPU, survey
from bitdance_edge.runtime.backends.device import find_device, free_memory
from bitdance_edge.runtime.backends.interface import Backend, Launch
from bitdance_edge.runtime.bundle.specs import CLASS_CONDITIONAL
from bitdance_edge.runtime.bundle.stage_names import StageName
from bitdance_edge.runtime.loop import BoundLoop
from bitdance_edge.runtime.noise import ImageNoise
from bitdance_edge.runtime.streaming import token_request

REPEATS, ROUNDS = 20, 5
SEED = 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tokens", nargs="*", default=[], metavar="BUNDLE", help="compared with the CPU's tokens")
    parser.add_argument(
        "--speed", nargs="*", default=[], metavar="MODEL=BUNDLE", help="timed, and compared with PyTorch"
    )
    parser.add_argument("--batches", default="1", help="images at once, comma-separated (default 1)")
    parser.add_argument("--steps", type=int, help="sampling steps (default: the bundle's)")
    parser.add_argument("--images", type=int, default=10, help="images whose tokens are compared (default 10)")
    parser.add_argument("--no-compile", action="store_true", help="omit the compiled PyTorch reference")
    parser.add_argument("--no-reference", action="store_true", help="omit PyTorch")
    args = parser.parse_args()
    if args.device == "cuda" and find_device() is None:
        raise SystemExit("no NVIDIA driver answers on this machine; --device cpu runs what a CPU can show")
    speed = [pair.partition("=") for pair in args.speed]
    require_models([model for model, _, _ in speed])
    report: dict[str, Any] = {"device": args.device, "gpu": asdict_or_none(find_device()), "failures": []}
    bundles = [Bundle.open(path) for path in (*args.tokens, *(path for _, _, path in speed))]
    report["backends"] = {bundle.name: list(survey(bundle)) for bundle in bundles}
    for name, lines in report["backends"].items():
        print(f"\nbackends for {name}", *lines, sep="\n  ")
    names = ON_GPU if args.device == "cuda" else ("onnxruntime-cpu",)
    report["tokens"] = [row for path in args.tokens for row in compare_tokens(path, names, args, report["failures"])]
    table("tokens against ONNX Runtime on the CPU", report["tokens"])
    if args.speed:
        machine = measure_machine(args.device)
        report["machine"] = asdict(machine)
        table("this machine", [report["machine"]])
        report["stages"], report["patches"] = [], []
        for model, _, path in speed:
            for images in map(int, args.batches.split(",")):
                time_backends(model, path, images, names, machine, args, report)
                if not args.no_reference:
                    report["patches"] += list(time_reference(model, images, args, report["failures"]))
        add_ratios(report["patches"])
        table("stages, milliseconds a launch", report["stages"])
        table("patches", report["patches"])
    table("failures", report["failures"])
    print(json.dumps(report))


def require_models(names: list[str]) -> None:
    if names:
        from gpu_reference import MODELS

        for name in names:
            if name not in MODELS:
                raise SystemExit(f"{name} is no model; it must be one of {', '.join(MODELS)}")


def asdict_or_none(value: Any) -> Any:
    return None if value is None else asdict(value)


def table(title: str, rows: list[dict[str, Any]]) -> None:
    if not rows:
        return
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [columns, *([shown(row.get(column)) for column in columns] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    print(f"\n{title}")
    for row in cells:
        print("  " + "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)), flush=True)


def shown(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


@contextmanager
def kept(failures: list[dict[str, str]], what: str) -> Iterator[None]:
    """Report a part that fails, and go on with the others."""
    try:
        yield
    except (BitDanceError, RuntimeError, OSError, ImportError, MemoryError) as error:
        failures.append({"part": what, "reason": f"{type(error).__name__}: {str(error).splitlines()[0][:300]}"})
        print(f"{what}: {error}", file=sys.stderr)
    finally:
        gc.collect()


def request_for(bundle: Bundle, images: int, steps: int | None) -> Request:
    request = replace(Request.example(bundle), seed=SEED, steps=steps, output="tokens")
    if bundle.model.kind == CLASS_CONDITIONAL:
        return replace(request, classes=[i % bundle.model.num_classes for i in range(images)])
    return replace(request, count=images)


def compare_tokens(
    path: str, names: tuple[str, ...], args: argparse.Namespace, failures: list[dict[str, str]]
) -> Iterator[dict[str, Any]]:
    bundle = Bundle.open(path)
    request = request_for(bundle, args.images, args.steps)
    wanted: list[np.ndarray] = []
    cpu = "onnxruntime-cpu"
    with kept(failures, f"tokens of {bundle.name} on {cpu}"), Pipeline.open(path, backend=cpu) as pipeline:
        wanted = [image.tokens for image in pipeline.generate(request)]
    for name in names if wanted else ():
        with kept(failures, f"tokens of {bundle.name} on {name}"), Pipeline.open(path, backend=name) as pipeline:
            found = [image.tokens for image in pipeline.generate(request)]
            bits = [float(np.mean(one != other)) for one, other in zip(found, wanted, strict=True)]
            yield {
                "bundle": bundle.name,
                "backend": name,
                "images": len(bits),
                "the same": sum(share == 0 for share in bits),
                "bits different": float(np.mean(bits)),
                "precision": bundle.stage(StageName.HEAD).precision,
            }


def time_backends(
    model: str,
    path: str,
    images: int,
    names: tuple[str, ...],
    machine: Machine,
    args: argparse.Namespace,
    report: dict[str, Any],
) -> None:
    for name in (name for name in NAMES if name in names):
        what = f"{model}, {images} images at once on {name}"
        with kept(report["failures"], what):
            before = free_memory() if args.device == "cuda" else None
            with Pipeline.open(path, backend=name, max_batch=images) as pipeline:
                labels = {"model": model, "images": images, "backend": name}
                request = request_for(pipeline.bundle, images, args.steps)
                patches = {**labels, **time_patches(pipeline, request)}
                patches["peak MB"] = None if before is None else (before - (free_memory() or before)) / 1e6
                report["patches"].append(patches)
                report["stages"] += [{**labels, **row} for row in time_stages(pipeline, request, machine)]


def time_patches(pipeline: Pipeline, request: Request) -> dict[str, Any]:
    """Generate once to warm up and capture, once timed as for a user, and once by hand for the host's part."""
    pipeline.generate(request)
    started, arrivals = time.perf_counter(), []
    for event in pipeline.stream(request):
        if isinstance(event, PatchDone):
            arrivals.append(time.perf_counter())
    seconds = arrivals[-1] - started
    between = np.diff(arrivals)
    return {
        "ms a patch": 1000 * statistics.median(between) if len(between) else 1000 * seconds,
        "s an image": seconds / len(request.resolve(pipeline.bundle).images),
        **host_time(pipeline, request),
    }


def host_time(pipeline: Pipeline, request: Request) -> dict[str, Any]:
    """Time the host's work for a patch while the device is idle; noise is drawn while the device works."""
    backend, settings = pipeline.backend, request.resolve(pipeline.bundle)
    asked, model = token_request(settings), pipeline.bundle.model
    seeds = [image.seed for image in settings.images]
    noise = ImageNoise(seeds, settings.steps, (model.tokens_per_step, model.bits))
    drawing, host, calls = [], [], []
    with bound_loop(pipeline, request) as loop:
        loop.start(asked)
        for patch in range(settings.size.patches):
            started = time.perf_counter()
            values = noise(patch, False)
            drawn = time.perf_counter()
            launched = launches(pipeline, backend)
            run = loop.move_to(patch, False)
            run.sample(values, settings.guidance)
            fetched = run.tokens.fetch()
            host.append(time.perf_counter() - drawn)
            calls.append(launches(pipeline, backend) - launched)
            fetched.wait()
            drawing.append(drawn - started)
    # A synchronous backend has finished the patch by then, so its host time would be that of the patch.
    return {
        "host us a patch": 1e6 * statistics.median(host[3:] or host) if backend.run_ahead else None,
        "noise us a patch": 1e6 * statistics.median(drawing),
        "launches a patch": statistics.median(calls[3:] or calls),
    }


def launches(pipeline: Pipeline, backend: Backend) -> int:
    """Return the number of calls to the device so far."""
    return getattr(backend, "calls", None) or sum(each.launches for each in pipeline.times().values())


@contextmanager
def bound_loop(pipeline: Pipeline, request: Request) -> Iterator[BoundLoop]:
    asked = token_request(request.resolve(pipeline.bundle))
    with pipeline.backend.current(), pipeline.loaded.loop(asked.shape) as loop:
        yield loop


def time_stages(pipeline: Pipeline, request: Request, machine: Machine) -> Iterator[dict[str, Any]]:
    bundle, settings = pipeline.bundle, request.resolve(pipeline.bundle)
    asked = token_request(settings)
    images = asked.images
    block, prompt = bundle.model.tokens_per_step, asked.prompt.shape[-1] if asked.prompt.ndim > 1 else 0
    with bound_loop(pipeline, request) as loop:
        sizes = {**loop.buffers.sizes, "B": images, **settings.size.dims}
        loop.start(asked)
        sampler = loop.move_to(0, False).sampler
        sampler.prepare(np.zeros(sampler.noise.shape, np.float32), settings.guidance)
        timed: dict[str, tuple[str, Launch, int]] = {
            "backbone (prompt)": (StageName.BACKBONE, loop.backbone(0).launch, prompt or bundle.model.prompt_tokens),
            "backbone (patch)": (StageName.BACKBONE, loop.backbone(1).launch, block),
            "modulation": (StageName.MODULATION, loop.modulation.launches[0], block),
            "head": (StageName.HEAD, sampler.evaluate[min(1, settings.steps)], block),
            "tokens": (StageName.TOKENS, sampler.embed, block),
        }
        for title, (stage, launch, length) in timed.items():
            took = launch_ms(pipeline.backend, launch, lambda: sampler.tokens.fetch().wait())
            yield stage_row(title, took, stage_cost(bundle, stage, {**sizes, "T": length}).floor_ms(machine))
    tokens = np.ones((images, settings.size.tokens, bundle.model.bits), np.float32)
    size = settings.size.pixels
    pipeline.decode(tokens, size=size)
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        pipeline.decode(tokens, size=size)
        seconds.append(time.perf_counter() - started)
    cost = stage_cost(bundle, StageName.DECODER, sizes)
    yield stage_row("decoder, with copies", 1000 * statistics.median(seconds), cost.floor_ms(machine))


def stage_row(title: str, took: float, floor: float) -> dict[str, Any]:
    return {"stage": title, "ms": took, "floor ms": floor, "times the floor": took / floor}


def launch_ms(backend: Backend, launch: Launch, fence: Callable[[], object]) -> float:
    """Time one launch among many in a row, in a CUDA graph where there is one, without the host's part."""
    block = backend.capture([launch] * REPEATS)
    block()
    block()
    fence()
    seconds = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        block()
        fence()
        seconds.append(time.perf_counter() - started)
    block.close()
    return 1000 * statistics.median(seconds) / REPEATS


def time_reference(
    model: str, images: int, args: argparse.Namespace, failures: list[dict[str, str]]
) -> Iterator[dict[str, Any]]:
    import torch
    from gpu_reference import MODELS, measure, random_model

    for compiled in (False,) if args.no_compile else (False, True):
        name = "PyTorch, compiled" if compiled else "PyTorch, eager"
        with kept(failures, f"{model}, {images} images at once on {name}"):
            # As published: float32 weights of the class-conditional models, bfloat16 of the language model.
            dtype = torch.bfloat16 if model == "14B-64x" else torch.float32
            steps = MODELS[model].sampling.steps if args.steps is None else args.steps
            found = measure(model, random_model(model, args.device, dtype), images, steps, compiled)
            yield {
                "model": model,
                "images": images,
                "backend": name,
                "ms a patch": found.ms_per_patch,
                "s an image": found.seconds_per_image,
                "peak MB": found.peak_mb,
            }


def add_ratios(rows: list[dict[str, Any]]) -> None:
    """Add the speed relative to each PyTorch run of the same model and batch."""
    for row in rows:
        for other in rows:
            if other["backend"].startswith("PyTorch") and (other["model"], other["images"]) == (
                row["model"],
                row["images"],
            ):
                row[f"x {other['backend'].removeprefix('PyTorch, ')}"] = other["s an image"] / row["s an image"]


if __name__ == "__main__":
    main()
