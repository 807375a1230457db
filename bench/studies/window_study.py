"""Compare the windowed sampler with the sequential one: sweeps, evaluations and flipped bits, patch by patch.

    python bench/studies/window_study.py BUNDLE... --steps 20,50,100 --bits 65536 --out runs/window
    python bench/studies/window_plots.py runs/window --out docs/sampler

Images are of classes in turn, or of held-out captions of the shapes. Each patch is sampled both ways from the same
patches before it. A flipped bit is one whose sequential prediction is farther from zero than ``bench.bits.ROUNDING``;
flips within it are counted apart. A setting that has its file is not run again.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from bitdance_edge.bench.bits import ROUNDING
from bitdance_edge.runtime import Bundle, Request
from bitdance_edge.runtime.backends.onnxruntime import OnnxRuntimeBackend
from bitdance_edge.runtime.backends.openvino import OpenVinoBackend
from bitdance_edge.runtime.bundle.files import written_whole
from bitdance_edge.runtime.request import Settings
from bitdance_edge.runtime.window_measure import PatchComparison, WindowComparison

SEED = 300_000
WINDOWS = "4,8,16,32"


@dataclass(frozen=True)
class Point:
    """One setting of one bundle."""

    bundle: str
    precision: str
    sampler: str
    steps: int
    window: int
    tolerance: float
    patches: int
    bits: int
    flipped: int  # beyond the rounding rule
    rounded: int  # within it
    sweeps: float  # of a patch, on average
    most_sweeps: int
    evaluations: float  # of the head a patch, relative to those of one after the other
    largest_error: float  # of a prediction


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("bundles", nargs="+", type=Path)
    add("--steps", default="20,50,100")
    add("--windows", default=WINDOWS)
    add("--samplers", default="sde,ode")
    add("--tolerances", default="1e-5")
    add("--bits", type=int, default=65_536, help="of a bundle, over all its settings and windows (default 65536)")
    add("--threads", type=int, default=1)
    add("--device", choices=("cpu", "cpu:bf16"), default="cpu")
    add("--captions", type=Path, help="of the shapes: a prompt a line (default: the bundle's example)")
    add("--out", type=Path, required=True)
    args = parser.parse_args()
    for folder in args.bundles:
        settings = [(sampler, int(steps)) for sampler in args.samplers.split(",") for steps in args.steps.split(",")]
        windows = [int(window) for window in args.windows.split(",")]
        tried = sum(window <= steps for _, steps in settings for window in windows) * len(args.tolerances.split(","))
        for sampler, steps in settings:
            for point in points(Bundle.open(folder), sampler, steps, -(-args.bits // tried), args):
                print(json.dumps(asdict(point)), flush=True)


def points(bundle: Bundle, sampler: str, steps: int, bits: int, args: argparse.Namespace) -> Iterator[Point]:
    """The windows of one sampler and number of steps, each compared over at least ``bits``."""
    bfloat16 = args.device != "cpu"
    name = f"{bundle.name}-bf16" if bfloat16 else bundle.name
    path = args.out / f"{name}-{sampler}-{steps}.json"
    if path.is_file():
        yield from (Point(**point) for point in json.loads(path.read_text(encoding="utf-8")))
        return
    model = bundle.model
    patches = -(-bits // (model.tokens_per_step * model.bits))
    images = -(-patches // model.default_size.patches)
    request = replace(subjects(bundle, images, args.captions), seed=SEED, sampler=sampler, steps=steps, window=1)
    backend = (OpenVinoBackend if bfloat16 else OnnxRuntimeBackend)(bundle, args.threads)
    compared = WindowComparison(bundle, backend, request.resolve(bundle), patches)
    runs = [(int(window), float(value)) for window in args.windows.split(",") for value in args.tolerances.split(",")]
    made = []
    for window, tolerance in tqdm(runs, desc=path.stem, leave=False, disable=None):
        if window <= steps:
            found = list(compared.compare(window, tolerance))
            precision = "bf16" if bfloat16 else bundle.stage("head").precision
            made.append(point(name, precision, request.resolve(bundle), window, tolerance, found))
    with written_whole(path) as file:
        file.write((json.dumps([asdict(each) for each in made], indent=1) + "\n").encode())
    yield from made


def subjects(bundle: Bundle, images: int, captions: Path | None) -> Request:
    if bundle.text is None:
        return Request(classes=[i % bundle.model.num_classes for i in range(images)])
    known = [bundle.text.example] if captions is None else captions.read_text(encoding="utf-8").split("\n")
    known = [caption for caption in known if caption.strip()]
    return Request(prompts=[known[i % len(known)] for i in range(images)])


def point(
    name: str, precision: str, settings: Settings, window: int, tolerance: float, found: list[PatchComparison]
) -> Point:
    sweeps = [each.sweeps for each in found]
    clear = [np.abs(each.want) > ROUNDING for each in found]
    differ = [(each.want > 0) != (each.got > 0) for each in found]
    return Point(
        bundle=name,
        precision=precision,
        sampler=settings.sampler,
        steps=settings.steps,
        window=window,
        tolerance=tolerance,
        patches=len(found),
        bits=sum(each.size for each in differ),
        flipped=sum(int((one & other).sum()) for one, other in zip(differ, clear, strict=True)),
        rounded=sum(int((one & ~other).sum()) for one, other in zip(differ, clear, strict=True)),
        sweeps=float(np.mean(sweeps)),
        most_sweeps=max(sweeps),
        evaluations=float(np.mean(sweeps)) * window / (settings.steps + 1),
        largest_error=max(float(np.abs(each.want - each.got).max()) for each in found),
    )


if __name__ == "__main__":
    main()
