"""What was built compared with the bundle's own stage, on inputs of a real generation, before it is put in place."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bitdance_edge.engines.failure import BuildFailure
from bitdance_edge.engines.inner_tensors import first_not_finite, is_finite, last_layer, session_with
from bitdance_edge.engines.samples import Sample, record_samples
from bitdance_edge.engines.targets.interface import Job, Run, Target
from bitdance_edge.engines.targets.onnx_session import run_of
from bitdance_edge.runtime.bundle.manifest import Bundle
from bitdance_edge.runtime.bundle.record import BuildRecord
from bitdance_edge.runtime.bundle.stage_names import StageName
from bitdance_edge.runtime.errors import BackendError, OutOfMemoryError
from bitdance_edge.runtime.host_memory import available_memory

PIXEL_SCALE = 255.0
# What a build may differ by from the bundle's own stage, relative to its largest value: another order of summation in
# the arithmetic of each element type. Where activations are quantised, a value next to the edge of a step may fall on
# its other side. Of digits-4x on a CPU, fp8 differed by 5e-3 and int8 and int4 by 3e-7, in the backbone.
QUANTISED, QUANTISED_HALF = "quantised", "quantised, the rest in 16 bits"
TOLERANCES = {"fp32": 1e-4, "fp16": 2e-2, "bf16": 1e-1, QUANTISED: 5e-2, QUANTISED_HALF: 1e-1}
PIXEL_TOLERANCES = {"fp32": 1 / 255, "fp16": 8 / 255, "bf16": 24 / 255, QUANTISED: 8 / 255, QUANTISED_HALF: 24 / 255}
# Rounding every layer's result to 8 bits makes of the last digit of a sum a whole step some layers later, so that two
# correct builds of a deep stage differ by as much as either does from the stage before it was quantised: what its
# calibration measured (the manifest's ``max_error``) is allowed where it is more than the table says.
# Of the encoder, the share of its bits that may flip: those whose prediction is next to zero.
BIT_TOLERANCES = {"fp32": 0.01, "fp16": 0.01, "bf16": 0.05, QUANTISED: 0.02, QUANTISED_HALF: 0.05}
MEMORY_PER_BYTE = 2.0  # of the bundle's weights: what running it takes


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
        """Compare a build in a folder with the bundle's own stage.

        Returns:
            the largest error, relative (of the encoder: the share of flipped bits); None where the build cannot be run
            on this machine, and ``skipped`` says why.

        Raises:
            BuildFailure: the build does not load, or its error is over the tolerance.
        """
        try:
            run, samples = target.open(job, record, folder), self._samples_of(job.stage)
        except BackendError as error:
            self.skipped = str(error)
            return None
        own, allowed = _own(job), tolerance(job)
        worst = max((error for sample in samples for error in _errors(job, own(sample), run(sample))), default=0.0)
        if not worst <= allowed:
            raise BuildFailure(
                f"{job.stage}: what {target.library} built differs from the bundle's own stage by {worst:.1e} "
                f"(allowed {allowed:.0e}), so nothing was written: the bundle runs without this build"
            )
        return worst

    def _samples_of(self, stage: str) -> list[Sample]:
        """The recorded inputs of a stage.

        Raises:
            OutOfMemoryError: the bundle, which is run to record them, does not fit into the memory that is available.
            BackendError: ONNX Runtime cannot run the bundle here.
        """
        if self._samples is None:
            needed = int(MEMORY_PER_BYTE * sum(spec.bytes for spec in self.bundle.stages.values()))
            available = available_memory()
            if available is not None and needed > available:
                raise OutOfMemoryError(
                    f"running the bundle takes up to {needed / 1e6:.0f} MB, and {available / 1e6:.0f} MB are available"
                )
            self._samples = record_samples(self.bundle)
            self._require_finite(self._samples)
        return [sample for (name, _), sample in self._samples.items() if name == stage]

    def _require_finite(self, samples: Mapping[tuple[str, str], Sample]) -> None:
        """Refuse a bundle of which a stage hands on values that are not finite."""
        if all(is_finite(values) for sample in samples.values() for values in sample.values()):
            return
        for (stage, _), inputs in samples.items():
            precision = self.bundle.stage(stage).precision
            if module := first_not_finite(self.bundle.verified(stage), precision, inputs):
                raise _not_finite(stage, module)


def tolerance(job: Job) -> float:
    """What the build of a stage may differ by, relative; of the encoder, the share of its bits that may flip."""
    spec = job.bundle.stage(job.stage)
    tables = {StageName.DECODER: PIXEL_TOLERANCES, StageName.ENCODER: BIT_TOLERANCES}
    table = tables.get(StageName(job.stage), TOLERANCES)
    if spec.precision in table:
        return table[spec.precision]
    return max(table[QUANTISED_HALF if job.facts.types & {"fp16", "bf16"} else QUANTISED], spec.max_error or 0.0)


def _own(job: Job) -> Run:
    """The bundle's own graph on ONNX Runtime on the CPU; running it raises BuildFailure where a value is not finite.

    Pixels and bits are finite whatever they are made of, so the last layer before them is looked at too.
    """
    precision, last = job.bundle.stage(job.stage).precision, last_layer(job.graph)
    run = run_of(session_with(job.graph, [] if last is None else [last], precision))

    def finite(inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        made = run(inputs)
        if not all(is_finite(values) for values in made.values()):
            raise _not_finite(job.stage, first_not_finite(job.graph, precision, inputs) or "its inputs")
        return made

    return finite


def _not_finite(stage: str, module: str) -> BuildFailure:
    return BuildFailure(
        f"{stage}: the bundle's own graph makes values that are not finite, the first in {module}; export the "
        "checkpoint again, in a wider --dtype if it is whole"
    )


def _errors(job: Job, want: Mapping[str, np.ndarray], got: Mapping[str, np.ndarray]) -> Iterator[float]:
    for tensor in job.bundle.stage(job.stage).outputs:
        one, other = want[tensor.name], got[tensor.name]
        yield float(np.mean(one != other)) if job.stage == StageName.ENCODER else relative_error(one, other)
