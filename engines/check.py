"""What was built against the bundle's own stage, on inputs of a real generation, before it is put in place."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bitdance_edge.engines.failure import BuildFailure
from bitdance_edge.engines.samples import Sample, record_samples
from bitdance_edge.engines.targets.cpu import run_of
from bitdance_edge.engines.targets.interface import Job, Run, Target
from bitdance_edge.runtime.backends.onnxruntime import cpu_options, import_onnxruntime
from bitdance_edge.runtime.bundle.manifest import Bundle
from bitdance_edge.runtime.bundle.record import BuildRecord
from bitdance_edge.runtime.bundle.stage_names import StageName
from bitdance_edge.runtime.errors import BitDanceError
from bitdance_edge.runtime.host_memory import available_memory

PIXEL_SCALE = 255.0
FLIPPED_BITS = 0.01  # share of bits that rounding may flip
# What a build may differ by from the bundle's own stage, relative to its largest value: rounding by another order of
# summation in the arithmetic of each element type.
TOLERANCES = {"fp32": 1e-4, "fp16": 2e-2, "bf16": 1e-1}
QUANTISED_TOLERANCE = 1e-1  # a value next to the edge of a step falls on its other side
PIXEL_TOLERANCES = {"fp32": 1 / 255, "fp16": 8 / 255, "bf16": 24 / 255}
QUANTISED_PIXEL_TOLERANCE = 24 / 255
MEMORY_PER_BYTE = 2.0  # of the bundle's weights, to run it beside a build


def relative_error(want: np.ndarray, got: np.ndarray) -> float:
    """Largest difference over the largest value (of pixels: 255); infinite where ``got`` is not finite."""
    scale = PIXEL_SCALE if got.dtype == np.uint8 else None
    want, got = want.astype(np.float64), got.astype(np.float64)
    if want.shape != got.shape or not np.isfinite(got).all():
        return float("inf")
    return float(np.abs(want - got).max(initial=0.0) / (scale or np.abs(want).max(initial=0.0) or 1.0))


@dataclass
class BuildCheck:
    """Inputs and outputs of the bundle's own stages, recorded once for all stages of a build."""

    bundle: Bundle
    skipped: str | None = None  # why nothing is checked
    _samples: Mapping[tuple[str, str], Sample] | None = field(default=None, init=False)

    def error(self, target: Target, job: Job, record: BuildRecord, folder: Path) -> float | None:
        """Largest error of a build, relative; None where it cannot be run on this machine.

        Raises:
            BuildFailure: the error is over the tolerance.
        """
        try:
            run, samples = target.open(job, record, folder), self._of(job.stage)
        except BitDanceError as error:
            self.skipped = str(error)
            return None
        own = _own(job)
        worst = max(
            (error for sample in samples for error in _errors(job, own(sample), run(sample))),
            default=0.0,
        )
        if not worst <= tolerance(job):
            raise BuildFailure(
                f"{job.stage}: what {target.library} built differs from the bundle's own stage by {worst:.1e} "
                f"(allowed {tolerance(job):.0e}), so nothing was written: run the bundle without this build"
            )
        return worst

    def _of(self, stage: str) -> list[Sample]:
        if self._samples is None:
            needed = int(MEMORY_PER_BYTE * sum(spec.bytes for spec in self.bundle.stages.values()))
            available = available_memory()
            if available is not None and needed > available:
                raise BuildFailure(
                    f"running the bundle takes up to {needed / 1e6:.0f} MB, and {available / 1e6:.0f} MB are available"
                )
            self._samples = record_samples(self.bundle)
        return [sample for (name, _), sample in self._samples.items() if name == stage]


def tolerance(job: Job) -> float:
    """What the build of a stage may differ by, relative."""
    precision, pixels = job.bundle.stage(job.stage).precision, job.stage == StageName.DECODER
    if precision in TOLERANCES:
        return (PIXEL_TOLERANCES if pixels else TOLERANCES)[precision]
    return QUANTISED_PIXEL_TOLERANCE if pixels else QUANTISED_TOLERANCE


def _own(job: Job) -> Run:
    """The bundle's own graph on ONNX Runtime on the CPU."""
    options = cpu_options(0, job.bundle.stage(job.stage).precision)
    return run_of(import_onnxruntime().InferenceSession(str(job.graph), options, providers=["CPUExecutionProvider"]))


def _errors(job: Job, want: Mapping[str, np.ndarray], got: Mapping[str, np.ndarray]) -> Iterator[float]:
    for tensor in job.bundle.stage(job.stage).outputs:
        one, other = want[tensor.name], got[tensor.name]
        if tensor.name == "tokens":  # a bit whose prediction is next to zero may flip; many may not
            share = float(np.mean(one != other))
            yield share if share > FLIPPED_BITS else 0.0
        else:
            yield relative_error(one, other)
