"""Memory of a stage on ONNX Runtime on the CPU, each in a process of its own: loaded, and after a run.

    python bench/studies/stage_memory.py full/bundle full/bundle-int8 --stages backbone,head

``loaded`` and ``peak`` are added to the process with the bundle open (private memory, and its peak in the launch for
one guided image). The last line is JSON.
"""

import argparse
import json
import resource
import subprocess
import sys

import numpy as np
import psutil

from bitdance_edge.runtime import Bundle
from bitdance_edge.runtime.backends.onnxruntime import OnnxRuntimeBackend
from bitdance_edge.runtime.bundle.specs import TensorSpec


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="+")
    parser.add_argument("--stages", default="backbone,head")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.alone:
        print(json.dumps(measured(args.bundles[0], args.stages)))
        return
    rows = []
    print("| stage | bundle | file, MB | loaded, MB | peak, MB |\n|---|---|---:|---:|---:|")
    for stage in args.stages.split(","):
        for bundle in args.bundles:
            command = [sys.executable, __file__, bundle, "--stages", stage, "--alone"]
            row = json.loads(subprocess.run(command, check=True, capture_output=True, encoding="utf-8").stdout)
            sizes = " | ".join(f"{row[name]:.0f}" for name in ("file", "loaded", "peak"))
            print(f"| {stage} | {row['bundle']} | {sizes} |", flush=True)
            rows.append(row)
    print(json.dumps(rows))


def measured(folder: str, stage: str) -> dict[str, str | float]:
    """Measure megabytes of one stage in this process."""
    bundle = Bundle.open(folder)
    backend = OnnxRuntimeBackend(bundle, 1)
    feeds = {tensor.name: values(tensor, bundle) for tensor in bundle.stage(stage).inputs}
    process = psutil.Process()
    before = process.memory_full_info().uss
    session = backend.load(stage).session
    loaded = process.memory_full_info().uss - before
    session.run(None, feeds)
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    spec = bundle.stage(stage)
    return {"bundle": bundle.name, "stage": stage, "file": spec.bytes / 1e6, "loaded": loaded / 1e6, "peak": peak / 1e6}


def values(tensor: TensorSpec, bundle: Bundle) -> np.ndarray:
    """Make random values of the right type: one guided image, four tokens a row."""
    shape = tensor.sized({"R": 2, "B": 1, "N": 1, "T": 4, **bundle.model.default_size.dims})
    drawn = np.random.default_rng(0).standard_normal(shape)
    return np.zeros(shape, tensor.dtype) if tensor.dtype == "int64" else drawn.astype(tensor.dtype)


if __name__ == "__main__":
    main()
