"""What the first image of a process costs beyond later ones, by cause, in CPU seconds, and its memory.

    python bench/studies/opening.py bundles/digits-4x
    bitdance-edge build bundles/digits-4x --target cpu && python bench/studies/opening.py bundles/digits-4x

The bundle is opened in this process, with the libraries already loaded; later images are the median of ``--later``.
The last line is JSON.
"""

import argparse
import json
from collections.abc import Iterator
from statistics import median
from typing import Any

import onnxruntime

from bitdance_edge.bench.figures import allowed_bytes, memory_plan
from bitdance_edge.bench.measured import cpu_seconds, library_bytes, memory
from bitdance_edge.bench.ours import draw
from bitdance_edge.bench.work import Work
from bitdance_edge.calibration.sessions import pipeline_on
from bitdance_edge.runtime.backends.built_graphs import BuiltGraphs
from bitdance_edge.runtime.backends.onnxruntime import OnnxRuntimeBackend, OnnxRuntimeStage
from bitdance_edge.runtime.bundle.manifest import Bundle


class TimedBackend(OnnxRuntimeBackend):
    """Records the CPU seconds of loading each stage, its check included."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.loading: dict[str, float] = {}

    def load(self, stage: str) -> OnnxRuntimeStage:
        started = cpu_seconds()
        loaded = super().load(stage)
        self.loading[stage] = cpu_seconds() - started
        return loaded


def checking(bundle: Bundle, stage: str) -> float:
    """Return the CPU seconds of checking the files of a stage, as its loading does."""
    started = cpu_seconds()
    if BuiltGraphs.find(bundle, "cpu", onnxruntime.__version__).graph(stage) is None:
        bundle.verified(stage)
    return cpu_seconds() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--steps", type=int, help="sampling steps (default: the bundle's)")
    parser.add_argument("--patches", type=int, help="only the first patches of the image (default: all)")
    parser.add_argument("--prompt", help="of a text-to-image bundle")
    parser.add_argument("--later", type=int, default=3, help="images after the first (default 3)")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    found = opening(args)
    print("\n".join(table(found)))
    print(json.dumps(found))


def opening(args: argparse.Namespace) -> dict[str, Any]:
    work = Work(images=1, steps=args.steps, patches=args.patches, seed=1, prompt=args.prompt)
    resting, started = memory("VmRSS") - library_bytes(), cpu_seconds()
    bundle = Bundle.open(args.bundle)
    opened = cpu_seconds() - started
    backend = TimedBackend(bundle, args.threads)
    with pipeline_on(bundle, backend, 1) as pipeline:

        def image() -> float:
            before = cpu_seconds()
            draw(pipeline, work)
            return cpu_seconds() - before

        first = image()
        later = median(image() for _ in range(args.later))
        taken = memory("VmHWM") - library_bytes() - resting
    checks = {stage: checking(bundle, stage) for stage in backend.loading}
    causes = {"reading the manifest": opened, "checking the files": sum(checks.values())}
    causes |= {f"loading {stage}": seconds - checks[stage] for stage, seconds in backend.loading.items()}
    causes["binding and first use of memory"] = first - sum(backend.loading.values()) - later
    plan = memory_plan(bundle, work)
    return {
        "bundle": bundle.name,
        "image": later,
        "first": opened + first,
        "causes": causes,
        "weights_bytes": plan.weights,
        "taken_bytes": taken,
        "taken_to_allowed": taken / allowed_bytes(plan),
    }


def table(found: dict[str, Any]) -> Iterator[str]:
    image, more = found["image"], found["first"] - found["image"]
    yield f"{found['bundle']}: {image:.3g} CPU s an image, {found['first']:.3g} for opening and the first."
    yield ""
    yield "| more than a later image | CPU s | share of an image |"
    yield "|---|---:|---:|"
    for cause, seconds in (*found["causes"].items(), ("total", more)):
        yield f"| {cause} | {seconds:.3g} | {100 * seconds / image:.1f} % |"
    yield ""
    yield (
        f"Peak memory beyond the libraries {found['taken_bytes'] / 1e6:.0f} MB, {found['taken_to_allowed']:.2f} of "
        f"what the weights ({found['weights_bytes'] / 1e6:.0f} MB) and the plan allow."
    )


if __name__ == "__main__":
    main()
