"""Before anything is built: what will be, how large, what it needs, and what is refused and why."""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bitdance_edge.engines.graph import read_graph
from bitdance_edge.engines.targets.interface import Estimate, Job, Target
from bitdance_edge.runtime.bundle.manifest import Bundle
from bitdance_edge.runtime.bundle.record import BuildRecord, record_path, target_folder
from bitdance_edge.runtime.bundle.stage_names import STAGE_WIDTH
from bitdance_edge.runtime.errors import BuildError
from bitdance_edge.runtime.host_memory import available_memory
from bitdance_edge.runtime.values import quoted


@dataclass(frozen=True, kw_only=True)
class PlannedStage:
    job: Job
    estimate: Estimate
    seconds_before: float | None  # what the same build took last time
    up_to_date: bool

    @property
    def onnx_bytes(self) -> int:
        return self.job.bundle.stage(self.job.stage).bytes


@dataclass(frozen=True)
class Plan:
    bundle: Bundle
    target: Target
    stages: tuple[PlannedStage, ...]

    @property
    def to_build(self) -> list[PlannedStage]:
        return [stage for stage in self.stages if not stage.up_to_date]

    def table(self) -> Iterator[str]:
        yield (
            f"{'stage':{STAGE_WIDTH}} {'types':10} {'ONNX MB':>8} {'built MB':>9} "
            f"{'memory MB':>10} {'held MB':>8} {'before':>8}  what"
        )
        for stage in self.stages:
            before = "" if stage.seconds_before is None else f"{stage.seconds_before:.1f} s"
            what, estimate = "up to date" if stage.up_to_date else "build", stage.estimate
            if estimate.refusal:
                what = f"refused: {estimate.refusal.split(':')[0]}"
            elif estimate.note:
                what += f" ({estimate.note})"
            built, memory, held = (
                f"<{size / 1e6:.0f}" for size in (estimate.output_bytes, estimate.memory_bytes, estimate.held_bytes)
            )
            job, size = stage.job, f"{stage.onnx_bytes / 1e6:.1f}"
            yield (
                f"{job.stage:{STAGE_WIDTH}} {job.facts.label:10} {size:>8} {built:>9} "
                f"{memory:>10} {held:>8} {before:>8}  {what}"
            )

    def require_possible(self) -> None:
        """Refuse the whole build before its first second.

        Raises:
            BuildError: a stage cannot be built for the target, or disk or memory do not suffice.
        """
        refused: dict[str, list[str]] = {}
        for stage in self.stages:
            if stage.estimate.refusal:
                refused.setdefault(stage.estimate.refusal, []).append(stage.job.stage)
        if refused:
            raise BuildError("; ".join(f"{', '.join(stages)}: {reason}" for reason, stages in refused.items()))
        if not self.to_build:
            return
        folder = self.bundle.folder
        needed, free = sum(stage.estimate.output_bytes for stage in self.to_build), shutil.disk_usage(folder).free
        if needed > free:
            raise BuildError(
                f"{folder} has {free / 1e6:.0f} MB free and the build takes up to {needed / 1e6:.0f} MB; free some "
                f"space, or build fewer stages: bitdance-edge build {quoted(folder)} --target {self.target.name} "
                "--stages head"
            )
        largest = max(self.to_build, key=lambda stage: stage.estimate.held_bytes)
        available = available_memory()
        if available is not None and largest.estimate.held_bytes > available:
            raise BuildError(
                f"{largest.job.stage} takes up to {largest.estimate.held_bytes / 1e6:.0f} MB of memory to build and "
                f"{available / 1e6:.0f} MB are available; close other programs, or build on a larger machine (for rtx "
                "any will do) and copy the bundle back"
            )


def plan_builds(bundle: Bundle, target: Target, stages: Sequence[str], max_images: int, force: bool) -> Plan:
    """Look at every stage; nothing is built.

    Args:
        stages: names; none for those that the target builds by itself.

    Raises:
        BuildError: the target needs a GPU that is not here, or a stage has no shapes to build for.
        BundleError: the bundle lacks a stage or a file.
    """
    named = stages or target.stages(bundle)
    return Plan(bundle, target, tuple(_plan_stage(bundle, target, name, max_images, force) for name in named))


def _plan_stage(bundle: Bundle, target: Target, name: str, max_images: int, force: bool) -> PlannedStage:
    job = target.job(bundle, name, read_graph(bundle.verified(name)), max_images)
    before = _record(job, target)
    return PlannedStage(
        job=job,
        estimate=target.estimate(job),
        seconds_before=before.seconds if before else None,
        up_to_date=not force and before is not None and _current(before, job, target),
    )


def _current(record: BuildRecord, job: Job, target: Target) -> bool:
    """Whether building again would give the same."""
    folder = target_folder(job.bundle, target.name)
    return (
        record.profiles == job.ranges
        and record.options == job.options
        and target.fits_here(record.devices, record.built_on)
        and record.mismatch(job.bundle, target.library_version) is None
        and record.damage(folder) is None
    )


def _record(job: Job, target: Target) -> BuildRecord | None:
    try:
        return BuildRecord.read(record_path(target_folder(job.bundle, target.name), job.stage))
    except BuildError:  # none, or not whole: it is built again, which mends it
        return None
