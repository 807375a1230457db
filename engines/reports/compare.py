"""PyTorch, ONNX Runtime and a build on the same inputs, stage by stage: where they first differ, where NaN begins.

Polygraphy runs the backends. ONNX Runtime also gives the output of every PyTorch module, found by the module path that
each ONNX node keeps, so that the first module that differs has a name.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from bitdance_edge.engines.check import relative_error
from bitdance_edge.engines.graph import GraphFacts, read_graph
from bitdance_edge.engines.inner_tensors import session_with
from bitdance_edge.engines.reports.bits import BITS, bit_error, predictions
from bitdance_edge.engines.targets.interface import Target
from bitdance_edge.runtime.bundle.manifest import Bundle
from bitdance_edge.runtime.bundle.record import BuildRecord, record_path, target_folder
from bitdance_edge.runtime.errors import BitDanceError, BuildError
from bitdance_edge.runtime.values import quoted

if TYPE_CHECKING:
    from bitdance_edge.export.stages import Generator


@dataclass(frozen=True)
class Difference:
    """One tensor in two backends.

    ``error`` is relative to the largest value; of bits, it is the largest prediction whose bit differs.
    """

    tensor: str
    module: str
    error: float
    nan_at: tuple[int, ...] | None  # first index that is not finite in the second backend


@dataclass
class Comparison:
    """What was found for one sample of a stage."""

    stage: str
    sample: str
    tolerance: float
    differences: dict[str, list[Difference]] = field(default_factory=dict)  # "pytorch - onnxruntime" -> in graph order
    omitted: dict[str, str] = field(default_factory=dict)  # backend -> why

    def first_diverging(self, pair: str) -> Difference | None:
        return next((found for found in self.differences[pair] if not found.error <= self.tolerance), None)

    def lines(self) -> Iterator[str]:
        title = self.stage if self.sample == "all" else f"{self.stage} ({self.sample})"
        for pair, found in self.differences.items():
            worst = max(found, key=lambda difference: difference.error)
            first = self.first_diverging(pair)
            yield (
                f"{title:18} {pair:26} {len(found):4} tensors, largest error {worst.error:.1e} (allowed "
                f"{self.tolerance:.0e}): {'DIFFERENT' if first else 'all finite' if pair.endswith('alone') else 'same'}"
            )
            if first is not None:
                where = f" of module {first.module}" if first.module else ""
                nan = f", not finite from index {list(first.nan_at)}" if first.nan_at is not None else ""
                yield f"{'':18} first to differ: {first.tensor}{where}, error {first.error:.1e}{nan}"
        for backend, reason in self.omitted.items():
            yield f"{title:18} {backend} omitted: {reason}"


def compare_stage(
    bundle: Bundle,
    target: Target,
    model: "Generator | None",
    stage: str,
    sample: str,
    inputs: Mapping[str, np.ndarray],
) -> Comparison:
    """Run one sample on every backend that is here, and compare each with the one before."""
    from polygraphy.backend.onnxrt import OnnxrtRunner
    from polygraphy.comparator import Comparator
    from polygraphy.logger import G_LOGGER

    path = bundle.verified(stage)
    facts = read_graph(path)
    outputs = [tensor.name for tensor in bundle.stage(stage).outputs]
    comparison = Comparison(stage, sample, bundle.stage(stage).tolerance)
    runners: list[Any] = []
    if model is None:
        comparison.omitted["pytorch"] = "give its checkpoint with --checkpoint"
    else:
        from bitdance_edge.engines.reports.reference import PyTorchRunner

        runners.append(PyTorchRunner(model, stage, facts.results))
    marked = list(dict.fromkeys([*facts.results.values(), *outputs]))
    runners.append(OnnxrtRunner(lambda: session_with(path, marked), name="onnxruntime"))
    try:
        runners.append(_built_runner(bundle, target, stage, facts))
    except BitDanceError as error:
        comparison.omitted[target.name] = str(error)
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
        results = Comparator.run(runners, data_loader=[dict(inputs)])
    made: dict[str, dict[str, Any]] = {
        name: {tensor: iterations[0][tensor] for tensor in iterations[0].keys()}  # noqa: SIM118  no mapping
        for name, iterations in cast(Any, results).items()
    }
    names = list(made)
    for one, other in pairwise(names):
        latent = predictions(stage, path, bundle.model.patch_side, inputs, made[one])
        comparison.differences[f"{one} - {other}"] = list(_differences(made[one], made[other], marked, facts, latent))
    if len(names) == 1:  # nothing to differ from, but values can still stop being finite
        alone = made[names[0]]
        comparison.differences[f"{names[0]} alone"] = list(_differences(alone, alone, marked, facts, None))
    return comparison


def _built_runner(bundle: Bundle, target: Target, stage: str, facts: GraphFacts) -> Any:
    """What was built of a stage as a runner.

    Raises:
        BitDanceError: nothing was built, or it does not run here.
    """
    from bitdance_edge.engines.reports.stage_runner import StageRunner

    folder = target_folder(bundle, target.name)
    path = record_path(folder, stage)
    if not path.is_file():
        raise BuildError(
            f"nothing was built for {target.name}: bitdance-edge build {quoted(bundle.folder)} --target {target.name}"
        )
    record = BuildRecord.read(path)
    if unfit := record.damage(folder) or record.mismatch(bundle, target.library_version):
        raise BuildError(f"{unfit}; {record.rebuild_command(bundle)}")
    job = target.job(bundle, stage, facts, record.max_images or 1)
    return StageRunner(target.name, bundle.stage(stage), target.open(job, record, folder))


def _differences(
    one: Mapping[str, Any],
    other: Mapping[str, Any],
    order: list[str],
    facts: GraphFacts,
    latent: np.ndarray | None,
) -> Iterator[Difference]:
    modules = {tensor: module for module, tensor in facts.results.items()}
    for tensor in order:
        if tensor in one and tensor in other and np.shape(one[tensor]) == np.shape(other[tensor]):
            want, got = np.asarray(one[tensor]), np.asarray(other[tensor])
            if tensor == BITS and latent is not None:
                yield Difference(tensor, modules.get(tensor, ""), bit_error(want, got, latent), None)
            else:
                yield _difference(tensor, modules.get(tensor, ""), want, got)


def _difference(tensor: str, module: str, want: np.ndarray, got: np.ndarray) -> Difference:
    bad = np.argwhere(~np.isfinite(got.astype(np.float64)))
    nan_at = tuple(int(i) for i in bad[0]) if len(bad) else None
    return Difference(tensor, module, relative_error(want, got), nan_at)
