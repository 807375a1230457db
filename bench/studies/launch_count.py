"""Count what reaches a GPU in one patch with ONNX Runtime on CUDA, without a GPU: over the CUDA of ``tests/fake_cuda``.

    python tests/fake_cuda/set_up.py build/cuda
    PYTHONPATH=build/cuda/site LD_LIBRARY_PATH=build/cuda/lib FAKE_CUDA_TRACE=trace.txt \\
        python bench/studies/launch_count.py BUNDLE [--images N] [--windows 8,16]

Kernels and library calls are those of the captured patch, with the bundle's own graphs and with what was built for
``cuda``. A call of cuBLAS or cuDNN counts as one, although the real one may launch two.
"""

import argparse
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

from bitdance_edge.runtime import Bundle, Pipeline, Request
from bitdance_edge.runtime.backends.built_graphs import BuiltGraphs
from bitdance_edge.runtime.backends.onnxruntime_cuda import OnnxRuntimeCudaBackend
from bitdance_edge.runtime.bundle.specs import CLASS_CONDITIONAL, MeasuredWindow

ENOUGH_PATCHES = 3  # the prompt's, one that is captured, and one that is replayed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--images", type=int, default=1)
    parser.add_argument("--kernels", action="store_true", help="also list the kernels by their number")
    parser.add_argument("--windows", default="", metavar="W,...", help="also in windows of so many head evaluations")
    args = parser.parse_args()
    for built in (False, True):
        name = "built for cuda" if built else "own graphs"
        counts = captured(args.bundle, args.images, built, 1)[-1]
        show(f"{name:15} {counts.total()} launches a patch", counts, args.kernels)
        for window in map(int, filter(None, args.windows.split(","))):
            # The two windows of a sampler are captured when they are first run, the beginning of a patch after them.
            sweep, _, begin = captured(args.bundle, args.images, built, window)[-3:]
            show(f"  window {window:2}: {begin.total()} begin a patch, {sweep.total()} a sweep", sweep, args.kernels)
            for run in measured(args.bundle, window):
                total = begin.total() + run.sweeps * sweep.total()
                print(f"    {run.sampler}, {run.steps} steps: {run.sweeps} sweeps, {total:.0f} launches a patch")


def show(title: str, counts: Counter[str], kernels: bool) -> None:
    print(title)
    for kernel, count in counts.most_common() if kernels else ():
        print(f"  {count:6} {kernel[:110]}")


def measured(path: str, window: int) -> list[MeasuredWindow]:
    """The sweeps that the bundle was measured to take with a window."""
    spec = Bundle.open(path).require_window()
    return [run for run in spec.runs if run.window == window]


def captured(path: str, images: int, built: bool, window: int) -> list[Counter[str]]:
    """Kernel or call -> its number, for each graph that the first patches of an image are captured as."""
    bundle = Bundle.open(path)
    with Pipeline.open(path, backend="onnxruntime-cuda", max_batch=images) as pipeline:
        assert isinstance(pipeline.backend, OnnxRuntimeCudaBackend)
        if not built:
            pipeline.backend.built = BuiltGraphs(bundle, bundle.folder, {}, {})
        if bundle.model.kind == CLASS_CONDITIONAL:
            request = Request(classes=[i % bundle.model.num_classes for i in range(images)], seed=1, output="tokens")
        else:
            request = replace(Request.example(bundle), count=images, seed=1)
        request = replace(request, window=window)
        events = pipeline.stream(request)
        for _ in range(ENOUGH_PATCHES * images):
            next(events)
        events.close()  # type: ignore[attr-defined]  a generator
    lines = Path(os.environ["FAKE_CUDA_TRACE"]).read_text(encoding="utf-8").splitlines()
    graphs, inside = list[Counter[str]](), False
    for line in lines:
        if line.startswith("capture begins"):
            graphs.append(Counter())
        inside = line.startswith("capture begins") or (inside and not line.startswith("capture ends"))
        if inside and line.startswith(("launch ", "call ")):
            graphs[-1][line.split()[1]] += 1
    return graphs


if __name__ == "__main__":
    main()
