"""Stages to engines: parsed, built in a thread that can be cancelled, written with their sidecars or not at all."""

import hashlib
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitdance_edge.engines.failure import BuildFailure, build_failure
from bitdance_edge.engines.graph import GraphFacts
from bitdance_edge.engines.network import (
    layer_kinds,
    parse_network,
    require_aliased_cache,
    require_cache_in_place,
)
from bitdance_edge.engines.progress import BuildWatch, progress_monitor
from bitdance_edge.engines.shapes import ShapeProfile
from bitdance_edge.engines.support import able
from bitdance_edge.engines.targets.tensorrt import Target
from bitdance_edge.runtime.backends.device import Device
from bitdance_edge.runtime.backends.tensorrt_library import Library
from bitdance_edge.runtime.bundle.files import written_whole
from bitdance_edge.runtime.bundle.manifest import Bundle
from bitdance_edge.runtime.bundle.sidecar import Sidecar, engine_path, onnx_hashes, sidecar_path
from bitdance_edge.runtime.errors import Cancelled

POLL_SECONDS = 0.1  # between two looks at the build, and the longest wait before Ctrl-C is heard
DETAILS = "detailed"  # layer names and their ONNX nodes stay in the engine, for inspect and profile

Watcher = Callable[[BuildWatch], None]


@dataclass(frozen=True, kw_only=True)
class StageBuild:
    """One engine to be built."""

    bundle: Bundle
    stage: str
    target: Target
    facts: GraphFacts
    profiles: tuple[ShapeProfile, ...]
    max_images: int
    device: Device | None  # the GPU of this machine

    @property
    def engine(self) -> Path:
        return engine_path(self.bundle, self.target.folder, self.stage)

    @property
    def ranges(self) -> dict[str, dict[str, list[list[int]]]]:
        """The profiles as the sidecar has them."""
        return {
            profile.name: {name: [list(shape) for shape in shapes] for name, shapes in profile.shapes.items()}
            for profile in self.profiles
        }

    @property
    def in_place_cache(self) -> bool:
        return self.stage == "backbone" and "TensorScatter" in self.facts.operators.values()

    @property
    def options(self) -> dict[str, Any]:
        """What else decides how the engine turns out."""
        return {"profiling_verbosity": DETAILS, "in_place_cache": self.in_place_cache}


def build_stage(build: StageBuild, library: Library, cancel: threading.Event, watcher: Watcher) -> Sidecar:
    """Build one engine and write it with its sidecar; ``watcher`` is called every tenth of a second meanwhile.

    Raises:
        BundleError: the ONNX file is not the one in the manifest.
        BuildFailure: TensorRT refused it; what it said is in a ``.log`` file beside where the engine would be.
        Cancelled: ``cancel`` was set. KeyboardInterrupt passes after the library has stopped.
    """
    path = build.bundle.verified(build.stage)
    watch = BuildWatch(cancel)
    library.log.clear()
    try:
        network, plan = _in_thread(lambda: _build(build, library, path, watch), watch, watcher)
    except BuildFailure as failure:
        raise _logged(build, library, failure) from None
    if cancel.is_set():
        raise Cancelled(f"cancelled while building {build.stage}; nothing was written")
    if plan is None:
        raise _logged(build, library, build_failure(build.stage, library.log, build.facts))
    sidecar = _describe(build, library, network, plan, watch.seconds)
    if build.in_place_cache and build.device is not None and build.device.capability in sidecar.capabilities:
        require_aliased_cache(library.trt.Runtime(library.logger).deserialize_cuda_engine(plan), build.bundle)
    _write(build.engine, plan, sidecar)
    return sidecar


def _build(build: StageBuild, library: Library, path: Path, watch: BuildWatch) -> tuple[Any, Any]:
    """The network and the serialised engine, None where the library gave up."""
    trt = library.trt
    builder = trt.Builder(library.logger)
    network = parse_network(library, builder, build.stage, path, build.facts)
    if build.in_place_cache:
        require_cache_in_place(library, network, build.bundle)
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.progress_monitor = progress_monitor(trt, watch)
    if build.target.capabilities:
        config.num_compute_capabilities = len(build.target.capabilities)
        for i, capability in enumerate(build.target.capabilities):
            name = f"SM{capability.replace('.', '')}"
            config.set_compute_capability(getattr(trt.ComputeCapability, name), i)
    for shapes in build.profiles:
        profile = builder.create_optimization_profile()
        for name, ranges in shapes.shapes.items():
            profile.set_shape(name, *ranges)
        config.add_optimization_profile(profile)
    return network, None if watch.cancel.is_set() else builder.build_serialized_network(network, config)


def _in_thread(work: Callable[[], tuple[Any, Any]], watch: BuildWatch, watcher: Watcher) -> tuple[Any, Any]:
    """Run the build beside this thread, which alone hears Ctrl-C, and stop it before passing the interrupt on."""
    with ThreadPoolExecutor(1) as pool:
        future: Future[tuple[Any, Any]] = pool.submit(work)
        try:
            while not wait([future], POLL_SECONDS).done:
                watcher(watch)
        except BaseException:
            watch.cancel.set()
            raise  # leaving the pool waits for the library, which stops at its next step
        return future.result()


def _describe(build: StageBuild, library: Library, network: Any, plan: Any, seconds: float) -> Sidecar:
    target, device = build.target, build.device
    here = (device.capability,) if device and not target.runs_on else ()
    return Sidecar(
        stage=build.stage,
        target=target.name,
        library=library.name,
        library_version=library.version,
        capabilities=able(build.facts, target.runs_on) or here,
        device=device.name if device and here else "",
        onnx=onnx_hashes(build.bundle, build.stage),
        max_images=build.max_images,
        profiles=build.ranges,
        precision=build.facts.label,
        layers=layer_kinds(network),
        options=build.options,
        bytes=plan.nbytes,
        sha256=hashlib.sha256(plan).hexdigest(),
        seconds=round(seconds, 2),
    )


def _write(engine: Path, plan: Any, sidecar: Sidecar) -> None:
    """Engine and sidecar; an interrupt between the two takes the engine away again."""
    described = sidecar_path(engine)
    try:
        with written_whole(engine) as file:
            file.write(plan)
            described.unlink(missing_ok=True)  # that of the engine which is replaced on leaving this block
        with written_whole(described) as file:
            file.write(sidecar.to_json().encode())
        engine.with_suffix(".log").unlink(missing_ok=True)  # of an earlier failure
    except BaseException:
        if not described.exists():
            engine.unlink(missing_ok=True)
        _remove_empty(engine.parent)
        raise


def _logged(build: StageBuild, library: Library, failure: BuildFailure) -> BuildFailure:
    log = build.engine.with_suffix(".log")
    with written_whole(log) as file:
        file.write("\n".join(library.log).encode())
    return BuildFailure(f"{failure}; TensorRT's log is in {log}")


def _remove_empty(folder: Path) -> None:
    with suppress(OSError):  # a folder that holds other engines stays
        folder.rmdir()
        folder.parent.rmdir()
