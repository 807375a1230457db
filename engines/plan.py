"""Before anything is built: what will be, how large, what it needs, and what is refused and why."""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bitdance_edge.engines.builder import StageBuild
from bitdance_edge.engines.graph import read_graph
from bitdance_edge.engines.shapes import shape_profiles
from bitdance_edge.engines.support import refusal, restriction
from bitdance_edge.engines.targets.tensorrt import Target
from bitdance_edge.runtime.backends.device import Device, find_device
from bitdance_edge.runtime.backends.tensorrt_library import Library
from bitdance_edge.runtime.bundle.manifest import Bundle
from bitdance_edge.runtime.bundle.sidecar import Sidecar, damage, mismatch
from bitdance_edge.runtime.errors import EngineError

# Upper bounds of what was measured on builds for RTX, from a few kB of weights to the 683 MB of B-4x's backbone
# (bench/results/engines.md): kernels and descriptions beside the weights, and the builder's peak of host memory.
ENGINE_BASE, ENGINE_PER_BYTE = 8_000_000, 1.1
MEMORY_BASE, MEMORY_PER_BYTE = 400_000_000, 4


@dataclass(frozen=True, kw_only=True)
class PlannedStage:
    build: StageBuild
    seconds_before: float | None  # what the same build took last time
    up_to_date: bool
    refusal: str | None  # why it cannot be built, and the command that would work
    note: str | None  # what its element types leave out

    @property
    def onnx_bytes(self) -> int:
        return self.build.bundle.stage(self.build.stage).bytes

    @property
    def engine_bytes(self) -> int:
        return int(ENGINE_BASE * len(self.build.profiles) + ENGINE_PER_BYTE * self.onnx_bytes)

    @property
    def memory_bytes(self) -> int:
        return int(MEMORY_BASE + MEMORY_PER_BYTE * self.onnx_bytes)


@dataclass(frozen=True)
class Plan:
    bundle: Bundle
    target: Target
    stages: tuple[PlannedStage, ...]

    @property
    def to_build(self) -> list[PlannedStage]:
        return [stage for stage in self.stages if not stage.up_to_date]

    def table(self) -> Iterator[str]:
        yield f"{'stage':9} {'types':10} {'ONNX MB':>8} {'engine MB':>10} {'memory MB':>10} {'before':>8}  what"
        for stage in self.stages:
            before = "" if stage.seconds_before is None else f"{stage.seconds_before:.1f} s"
            what = "up to date" if stage.up_to_date else "build"
            if stage.refusal:
                what = f"refused: {stage.refusal.split(':')[0]}"
            elif stage.note:
                what += f" ({stage.note})"
            engine, memory = f"<{stage.engine_bytes / 1e6:.0f}", f"<{stage.memory_bytes / 1e6:.0f}"
            yield (
                f"{stage.build.stage:9} {stage.build.facts.label:10} {stage.onnx_bytes / 1e6:8.1f} "
                f"{engine:>10} {memory:>10} {before:>8}  {what}"
            )

    def require_possible(self) -> None:
        """Refuse the whole build before its first second.

        Raises:
            EngineError: a stage cannot be built for the target, or disk or memory will not do.
        """
        refused: dict[str, list[str]] = {}
        for stage in self.stages:
            if stage.refusal:
                refused.setdefault(stage.refusal, []).append(stage.build.stage)
        if refused:
            raise EngineError("; ".join(f"{', '.join(stages)}: {reason}" for reason, stages in refused.items()))
        if not self.to_build:
            return
        folder = self.bundle.folder
        needed, free = sum(stage.engine_bytes for stage in self.to_build), shutil.disk_usage(folder).free
        if needed > free:
            raise EngineError(
                f"{folder} has {free / 1e6:.0f} MB free and the engines take up to {needed / 1e6:.0f} MB; free some "
                f"space, or build fewer: bitdance-edge build {folder} --target {self.target.name} --stages head"
            )
        largest = max(self.to_build, key=lambda stage: stage.memory_bytes)
        available = available_memory()
        if available is not None and largest.memory_bytes > available:
            raise EngineError(
                f"{largest.build.stage} takes up to {largest.memory_bytes / 1e6:.0f} MB of memory to build and "
                f"{available / 1e6:.0f} MB are available; close other programs or build on a larger machine: for rtx "
                "targets any will do, then copy the bundle back"
            )


def plan_builds(
    bundle: Bundle, target: Target, library: Library, stages: Sequence[str], max_images: int, force: bool
) -> Plan:
    """Look at every stage; nothing is built.

    Raises:
        EngineError: the target needs a GPU that is not here, or a stage has no shapes to build for.
        BundleError: the bundle lacks a stage or a file.
    """
    device = find_device()
    if not target.runs_on and device is None:
        raise EngineError(
            f"target {target.name} builds for the GPU of this machine, and no NVIDIA driver answers here; "
            f"build on the device, or for RTX GPUs with: bitdance-edge build {bundle.folder} --target rtx"
        )
    planned = (_plan_stage(bundle, target, library, name, max_images, device) for name in stages)
    return Plan(bundle, target, tuple(replace(stage, up_to_date=False) if force else stage for stage in planned))


def _plan_stage(
    bundle: Bundle, target: Target, library: Library, name: str, max_images: int, device: Device | None
) -> PlannedStage:
    facts = read_graph(bundle.verified(name))
    build = StageBuild(
        bundle=bundle,
        stage=name,
        target=target,
        facts=facts,
        profiles=shape_profiles(bundle, name, max_images),
        max_images=max_images,
        device=device,
    )
    before = _sidecar(build.engine)
    gpus = target.runs_on or ((device.capability,) if device else ())
    return PlannedStage(
        build=build,
        seconds_before=before.seconds if before else None,
        up_to_date=before is not None and _current(before, build, library),
        refusal=refusal(facts, target, gpus, library, bundle),
        note=restriction(facts, target),
    )


def _current(sidecar: Sidecar, build: StageBuild, library: Library) -> bool:
    same = (
        sidecar.profiles == build.ranges
        and sidecar.options == build.options
        and (not sidecar.device or (build.device is not None and sidecar.device == build.device.name))
    )
    unfit = mismatch(sidecar, build.bundle, library.version) or damage(sidecar, build.engine)
    return same and unfit is None


def _sidecar(engine: Path) -> Sidecar | None:
    try:
        return Sidecar.read(engine)
    except EngineError:  # none, or not whole: it is built again, which mends it
        return None


def available_memory() -> int | None:
    """Bytes that a program can still take without swapping; None where the system does not say (Linux does)."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)
