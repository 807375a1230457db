"""Times of patches and stages on any backend: as for a user, for the host alone, launch by launch, kernel by kernel."""

import json
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from gpu_floors import Machine, StageCost, stage_cost
from gpu_report import Failures

from bitdance_edge.runtime import PatchDone, Pipeline, Request
from bitdance_edge.runtime.backends.interface import Backend, Launch
from bitdance_edge.runtime.bundle.specs import ImageSize
from bitdance_edge.runtime.bundle.stage_names import StageName
from bitdance_edge.runtime.loop import BoundLoop
from bitdance_edge.runtime.noise import ImageNoise
from bitdance_edge.runtime.request import Settings
from bitdance_edge.runtime.streaming import token_request
from bitdance_edge.runtime.window import WindowRun

REPEATS, ROUNDS = 20, 5
WARM_PATCHES = 3  # the prompt's, one that is captured, and one that is replayed
NAME_LENGTH = 110  # characters of a kernel's name that are kept


def time_patches(pipeline: Pipeline, request: Request, patches: int | None = None) -> dict[str, Any]:
    """Generate twice to warm up and capture, once timed as for a user, and once by hand for the host's part.

    Args:
        patches: of an image that are generated; None: all.
    """
    for _ in range(2):
        arrivals_of(pipeline, request, patches)
    started = time.perf_counter()
    arrivals = arrivals_of(pipeline, request, patches)
    between = np.diff(arrivals)
    settings = request.resolve(pipeline.bundle)
    took = 1000 * (statistics.median(between) if len(between) else arrivals[-1] - started)
    whole = patches is None or patches >= settings.size.patches
    return {
        "ms a patch": took,
        "s an image": (arrivals[-1] - started) / len(settings.images) if whole else None,
        **host_time(pipeline, request, patches),
    }


def arrivals_of(pipeline: Pipeline, request: Request, patches: int | None) -> list[float]:
    """When each patch of a batch arrived."""
    arrivals = []
    for event in pipeline.stream(request):
        if isinstance(event, PatchDone):
            arrivals.append(time.perf_counter())
            if len(arrivals) == patches:
                break
    return arrivals


def host_time(pipeline: Pipeline, request: Request, patches: int | None) -> dict[str, Any]:
    """Time the host's work for a patch while the device is idle; noise is drawn while the device works."""
    backend, settings = pipeline.backend, request.resolve(pipeline.bundle)
    asked, noise = token_request(settings), noise_of(pipeline, settings)
    drawing, host, calls, sweeps = [], [], [], []
    with bound_loop(pipeline, request) as loop:
        loop.start(asked)
        for patch in range(min(patches or settings.size.patches, settings.size.patches)):
            started = time.perf_counter()
            values = noise(patch, False)
            drawn = time.perf_counter()
            launched = launches(pipeline, backend)
            run = loop.move_to(patch, False)
            run.sample(values, settings.guidance)
            fetched = run.tokens.fetch()
            sweeps += [run.sweeps] if isinstance(run, WindowRun) else []
            host.append(time.perf_counter() - drawn)
            calls.append(launches(pipeline, backend) - launched)
            fetched.wait()
            drawing.append(drawn - started)
    # A synchronous backend has finished the patch by then, so its host time would be that of the patch.
    return {
        "host us a patch": 1e6 * statistics.median(host[3:] or host) if backend.run_ahead else None,
        "noise us a patch": 1e6 * statistics.median(drawing),
        **({"sweeps a patch": statistics.mean(sweeps)} if sweeps else {}),
        "launches a patch": statistics.median(calls[3:] or calls),
    }


def noise_of(pipeline: Pipeline, settings: Settings) -> ImageNoise:
    model = pipeline.bundle.model
    return ImageNoise([image.seed for image in settings.images], settings.steps, (model.tokens_per_step, model.bits))


def launches(pipeline: Pipeline, backend: Backend) -> int:
    """Return the number of calls to the device so far."""
    return getattr(backend, "calls", None) or sum(each.launches for each in pipeline.times().values())


def time_kernels(pipeline: Pipeline, request: Request, most: int) -> Iterator[dict[str, Any]]:
    """The kernels and copies of one warm patch, then of the decoder, by the time they take.

    Yields:
        of each the ``most`` that take longest, then all of them, beside the time from the first's start to the last's
        end.
    """
    settings = request.resolve(pipeline.bundle)
    asked, noise = token_request(settings), noise_of(pipeline, settings)
    with bound_loop(pipeline, request) as loop:
        loop.start(asked)

        def sample(patch: int) -> None:
            run = loop.move_to(patch, False)
            run.sample(noise(patch, False), settings.guidance)
            run.tokens.fetch().wait()

        for patch in range(WARM_PATCHES):
            sample(patch)
        yield from ({"of": "patch", **row} for row in kernels_of(lambda: sample(WARM_PATCHES), most))
    decode = decoding(pipeline, asked.images, settings.size)
    decode()
    yield from ({"of": "decoder", **row} for row in kernels_of(decode, most))


def kernels_of(work: Callable[[], object], most: int) -> Iterator[dict[str, Any]]:
    """The kernels and copies of ``work``, which waits for them, as PyTorch's profiler records them."""
    from torch.profiler import ProfilerActivity, profile

    with tempfile.TemporaryDirectory() as folder:
        with profile(activities=[ProfilerActivity.CUDA]) as recorded:
            work()
        path = Path(folder) / "trace.json"
        recorded.export_chrome_trace(str(path))
        trace = json.loads(path.read_text(encoding="utf-8"))
    ran = [event for event in trace["traceEvents"] if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")]
    durations: dict[str, list[float]] = defaultdict(list)
    for event in ran:
        durations[event["name"][:NAME_LENGTH]].append(event["dur"])
    longest = sorted(durations.items(), key=lambda item: -sum(item[1]))[:most]
    for name, each in longest:
        yield {"kernel": name, "number": len(each), "us each": statistics.mean(each), "ms": sum(each) / 1000}
    if ran:
        span = max(event["ts"] + event["dur"] for event in ran) - min(event["ts"] for event in ran)
        busy = sum(event["dur"] for event in ran)
        yield {
            "kernel": f"all, within {span / 1000:.3f} ms",
            "number": len(ran),
            "us each": busy / len(ran),
            "ms": busy / 1000,
        }


@contextmanager
def bound_loop(pipeline: Pipeline, request: Request) -> Iterator[BoundLoop]:
    asked = token_request(request.resolve(pipeline.bundle))
    with pipeline.backend.current(), pipeline.loaded.loop(asked.shape) as loop:
        yield loop


def time_stages(
    pipeline: Pipeline, request: Request, machine: Machine | None, failures: Failures
) -> Iterator[dict[str, Any]]:
    """A row for each stage, as soon as it is timed; one that fails is reported, and the others go on."""
    bundle, settings = pipeline.bundle, request.resolve(pipeline.bundle)
    asked = token_request(settings)
    block, prompt = bundle.model.tokens_per_step, asked.prompt.shape[-1] if asked.prompt.ndim > 1 else 0
    with bound_loop(pipeline, request) as loop:
        sizes = {**loop.buffers.sizes, "B": asked.images, **settings.size.dims}
        loop.start(asked)
        sampler = loop.move_to(0, False).sampler
        sampler.prepare(np.zeros(sampler.noise.shape, np.float32), settings.guidance)
        timed: dict[str, tuple[str, Launch, int]] = {
            "backbone (prompt)": (StageName.BACKBONE, loop.backbone(0).launch, prompt or bundle.model.prompt_tokens),
            "backbone (patch)": (StageName.BACKBONE, loop.backbone(1).launch, block),
            "modulation": (StageName.MODULATION, sampler.modulation.launches[0], block),
            "head": (StageName.HEAD, sampler.evaluate[min(1, settings.steps)], block),
            "tokens": (StageName.TOKENS, sampler.embed, block),
        }
        for title, (stage, launch, length) in timed.items():
            with failures.kept(f"{title} of {bundle.name} on {pipeline.backend.name}"):
                took = launch_ms(pipeline.backend, launch, lambda: sampler.tokens.fetch().wait())
                yield stage_row(title, took, stage_cost(bundle, stage, {**sizes, "T": length}), machine)
    with failures.kept(f"decoder of {bundle.name} on {pipeline.backend.name}"):
        took = decoder_ms(pipeline, asked.images, settings.size)
        yield stage_row("decoder, with copies", took, stage_cost(bundle, StageName.DECODER, sizes), machine)


def decoding(pipeline: Pipeline, images: int, size: ImageSize) -> Callable[[], object]:
    """What decodes as many images, whatever they are, and waits for the pixels."""
    tokens = np.ones((images, size.tokens, pipeline.bundle.model.bits), np.float32)
    return lambda: pipeline.decode(tokens, size=size.pixels)


def decoder_ms(pipeline: Pipeline, images: int, size: ImageSize) -> float:
    decode, seconds = decoding(pipeline, images, size), []
    for _ in range(4):
        started = time.perf_counter()
        decode()
        seconds.append(time.perf_counter() - started)
    return 1000 * statistics.median(seconds[1:])


def stage_row(title: str, took: float, cost: StageCost, machine: Machine | None) -> dict[str, Any]:
    """A stage's time beside its floor, where the machine's rates are known."""
    if machine is None:
        return {"stage": title, "ms": took}
    floor = cost.floor_ms(machine)
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
