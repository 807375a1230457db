"""Count what reaches a GPU in one patch with ONNX Runtime on CUDA, without a GPU: over the CUDA of ``tests/fake_cuda``.

    python tests/fake_cuda/set_up.py build/cuda
    PYTHONPATH=build/cuda/site LD_LIBRARY_PATH=build/cuda/lib FAKE_CUDA_TRACE=trace.txt \\
        python bench/studies/launch_count.py BUNDLE [--images N]

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
from bitdance_edge.runtime.bundle.specs import CLASS_CONDITIONAL

ENOUGH_PATCHES = 3  # the prompt's, one that is captured, and one that is replayed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--images", type=int, default=1)
    parser.add_argument("--kernels", action="store_true", help="also list the kernels by their number")
    args = parser.parse_args()
    for built in (False, True):
        counts = captured(args.bundle, args.images, built)
        print(f"{'built for cuda' if built else 'own graphs':15} {sum(counts.values())} launches a patch")
        for kernel, count in counts.most_common() if args.kernels else ():
            print(f"  {count:6} {kernel[:110]}")


def captured(path: str, images: int, built: bool) -> Counter[str]:
    """Kernel or call -> its number in the last captured patch."""
    bundle = Bundle.open(path)
    with Pipeline.open(path, backend="onnxruntime-cuda", max_batch=images) as pipeline:
        assert isinstance(pipeline.backend, OnnxRuntimeCudaBackend)
        if not built:
            pipeline.backend.built = BuiltGraphs(bundle, bundle.folder, {}, {})
        if bundle.model.kind == CLASS_CONDITIONAL:
            request = Request(classes=[i % bundle.model.num_classes for i in range(images)], seed=1, output="tokens")
        else:
            request = replace(Request.example(bundle), count=images, seed=1)
        events = pipeline.stream(request)
        for _ in range(ENOUGH_PATCHES * images):
            next(events)
        events.close()  # type: ignore[attr-defined]  a generator
    lines = Path(os.environ["FAKE_CUDA_TRACE"]).read_text(encoding="utf-8").splitlines()
    last = max(i for i, line in enumerate(lines) if line.startswith("capture begins"))
    end = next(i for i in range(last, len(lines)) if lines[i].startswith("capture ends"))
    return Counter(line.split()[1] for line in lines[last:end] if line.startswith(("launch ", "call ")))


if __name__ == "__main__":
    main()
