"""How many sweeps the windowed sampler takes, and which bits it flips.

Each patch is sampled one evaluation after the other, and then in windows from the same patches before it, one image at
a time.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
from tqdm import tqdm

from bitdance_edge.runtime.backends.interface import Backend
from bitdance_edge.runtime.backends.onnxruntime import OnnxRuntimeBackend
from bitdance_edge.runtime.bundle.manifest import Bundle
from bitdance_edge.runtime.bundle.specs import MeasuredWindow, WindowSpec
from bitdance_edge.runtime.bundle.stage_names import LOOP_STAGES, WINDOW_STAGES, StageName
from bitdance_edge.runtime.errors import BackendError
from bitdance_edge.runtime.host_memory import available_memory
from bitdance_edge.runtime.loop import BoundLoop
from bitdance_edge.runtime.noise import ImageNoise
from bitdance_edge.runtime.patch_run import PatchRun
from bitdance_edge.runtime.request import Request, Settings
from bitdance_edge.runtime.sampler import SAMPLERS, patch_guidance
from bitdance_edge.runtime.streaming import token_request
from bitdance_edge.runtime.window import WindowRun

# Tried in this order, until no bit flips. With 1e-4 predictions of trained models were up to 0.02 off, with 1e-5 0.001.
TOLERANCES = (1e-5, 1e-6)
WINDOWS = (4, 8, 16, 32)
PATCHES = 16  # of a setting, at most
READ_AT_MOST = 20e9  # bytes of weights, for one setting sampled sequentially: 2 s at 10 GB/s
SEED = 1_000_000
MEMORY_PER_BYTE = 2  # of the stages: what running them takes

Observe = Callable[[PatchRun, int], None]  # (what has just sampled a patch, its number among all)


@dataclass(frozen=True)
class PatchComparison:
    """What a patch of one image was predicted as, ``[P, C]``: sequentially and in so many sweeps."""

    want: np.ndarray
    got: np.ndarray
    sweeps: int


def measured_window(bundle: Bundle, patches: int = PATCHES) -> WindowSpec:
    """Measure a bundle on ONNX Runtime on this CPU: at the largest of ``TOLERANCES`` with which no bit flips.

    Args:
        patches: of each setting; fewer where the head is large.

    Raises:
        BackendError: the bundle cannot run here.
    """
    backend = OnnxRuntimeBackend(bundle)
    compared = [
        WindowComparison(bundle, backend, settings, _affordable(bundle, settings.steps, patches))
        for settings in tqdm(list(_settings(bundle)), desc="sample sequentially", leave=False, disable=None)
    ]
    spec = WindowSpec(tolerance=TOLERANCES[0], runs=())
    for tolerance in TOLERANCES:
        runs = [(each, window) for each in compared for window in WINDOWS if window <= each.settings.steps]
        progress = tqdm(runs, desc=f"measure windows, tolerance {tolerance:g}", leave=False, disable=None)
        spec = WindowSpec(tolerance=tolerance, runs=tuple(each.measure(window, tolerance) for each, window in progress))
        if not any(run.flipped for run in spec.runs):
            break
    return spec


def with_measured_window(bundle: Bundle, patches: int = PATCHES) -> Bundle:
    """Measure a bundle's windows, and write its manifest; they stay unmeasured where this machine cannot run it."""
    if bundle.window is None:
        return bundle
    needed, available = MEMORY_PER_BYTE * sum(stage.bytes for stage in bundle.stages.values()), available_memory()
    spec = WindowSpec(tolerance=TOLERANCES[0], runs=())
    if available is None or needed <= available:
        with suppress(BackendError):  # element types that ONNX Runtime has no kernels for on a CPU
            spec = measured_window(bundle, patches)
    replace(bundle, window=spec).write()
    return Bundle.open(bundle.folder)


def _settings(bundle: Bundle) -> Iterator[Settings]:
    """The default sampler with the default and the published steps, and the other sampler with the more of them."""
    steps = {bundle.sampling.steps, bundle.published_sampling.steps}
    for sampler in SAMPLERS:
        for count in sorted(steps) if sampler == bundle.sampling.sampler else [max(steps)]:
            request = replace(Request.example(bundle), seed=SEED, sampler=sampler, steps=count, window=1)
            yield request.resolve(bundle)


def _affordable(bundle: Bundle, steps: int, patches: int) -> int:
    read = bundle.stage(StageName.HEAD).weight_bytes * (steps + 1)
    return max(1, min(patches, int(READ_AT_MOST / max(1, read))))


class WindowComparison:
    """The first patches of the images of a request, sampled sequentially when this is made.

    Args:
        settings: of images without an edit or prefix.
        patches: of all images in total, at most.
    """

    def __init__(self, bundle: Bundle, backend: Backend, settings: Settings, patches: int) -> None:
        self.bundle, self.backend, self.settings, self.patches = bundle, backend, settings, patches
        self.stages = {name: backend.load(name) for name in (*LOOP_STAGES, *WINDOW_STAGES)}
        self.states: list[np.ndarray] = []  # float32 [draws, P, C] of each patch, whose signs are its tokens

        def keep(run: PatchRun, _number: int) -> None:
            self.states.append(run.sampler.x.read())

        self._sample(1, 1.0, keep)

    def measure(self, window: int, tolerance: float) -> MeasuredWindow:
        """Sample the same patches in windows, and count."""
        found = self.compare(window, tolerance)
        sweeps = [each.sweeps for each in found]
        return MeasuredWindow(
            window=window,
            sampler=self.settings.sampler,
            steps=self.settings.steps,
            sweeps=round(float(np.mean(sweeps)), 2),
            most_sweeps=max(sweeps),
            bits=sum(each.want.size for each in found),
            flipped=sum(int(((each.got > 0) != (each.want > 0)).sum()) for each in found),
        )

    def compare(self, window: int, tolerance: float) -> list[PatchComparison]:
        """Sample the same patches in windows."""
        found = []

        def compare(run: PatchRun, number: int) -> None:
            assert isinstance(run, WindowRun)
            known = self.states[number]
            found.append(PatchComparison(known[0], run.sampler.x.read()[0], run.sweeps))
            run.sampler.x.write(known)
            run.sampler.embed()

        self._sample(window, tolerance, compare)
        return found

    def _sample(self, window: int, tolerance: float, after: Observe) -> None:
        bundle, settings, number = self.bundle, self.settings, 0
        bundle = replace(bundle, window=WindowSpec(tolerance=tolerance, runs=()))
        images = settings.batches(1)
        requests = [replace(token_request(image), window=window) for image in images]
        loop = BoundLoop(self.backend, bundle, self.stages, requests[0].shape)
        try:
            for image, request in zip(images, requests, strict=True):
                loop.start(request)
                patch_shape = bundle.model.tokens_per_step, bundle.model.bits
                seeds = [each.seed for each in image.images]
                noise = ImageNoise(seeds, image.steps, patch_shape, start_only=image.sampler == "ode")
                for patch in range(min(image.size.patches, self.patches - number)):
                    guidance = patch_guidance(image.guidance, image.guidance_schedule, patch, image.size.patches)
                    rows_apart = loop.shape.guided and guidance == 1
                    run = loop.move_to(patch, rows_apart)
                    run.sample(noise(patch, rows_apart), guidance)
                    after(run, number)
                    number += 1
        finally:
            loop.free()
