"""The head in INT8 and in float32 on this CPU: one process, launches in turn, medians, and whether sums saturate.

    python bench/studies/int8_head.py bundles/digits-4x bundles/digits-4x-int8 --rounds 60

Both heads get the same inputs and run with the options of the runtime. ``error`` is the largest
difference of the INT8 head from its own graph computed in float32 (Q and DQ as operators, products exact), with the
fast kernels and with those for processors without VNNI, on which the fast ones saturate. The last line is JSON.
"""

import argparse
import json
import statistics
import time
from typing import Any

import numpy as np

from bitdance_edge.runtime import Bundle
from bitdance_edge.runtime.backends.onnxruntime import OnnxRuntimeBackend, cpu_options, import_onnxruntime
from bitdance_edge.runtime.backends.processor import int8_path
from bitdance_edge.runtime.bundle.stage_names import StageName


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("float32")
    parser.add_argument("int8")
    parser.add_argument("--images", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    bundles = {"fp32": Bundle.open(args.float32), "int8": Bundle.open(args.int8)}
    feeds = inputs(bundles["fp32"], args.images)
    sessions = {
        name: OnnxRuntimeBackend(bundle, args.threads).load(StageName.HEAD).session for name, bundle in bundles.items()
    }
    took: dict[str, list[float]] = {name: [] for name in sessions}
    for opened in sessions.values():  # warm-up
        opened.run(None, feeds)
    for _ in range(args.rounds):
        for name, opened in sessions.items():
            took[name].append(_ms(opened, feeds))
    medians = {name: statistics.median(values) for name, values in took.items()}
    ratio = statistics.median(a / b for a, b in zip(took["int8"], took["fp32"], strict=True))
    exact = session(bundles["int8"], cpu_options(args.threads, "fp8")).run(None, feeds)[0]  # Q and DQ as operators
    errors, kernels_took = {}, {}
    for name, widened in (("fast kernels", "0"), ("kernels for no VNNI", "1")):
        options = cpu_options(args.threads, "int8")
        options.add_session_config_entry("session.x64quantprecision", widened)
        opened = session(bundles["int8"], options)
        errors[name] = opened.run(None, feeds)[0]
        kernels_took[name] = statistics.median(_ms(opened, feeds) for _ in range(args.rounds))
    path = int8_path()
    print(f"{path.why}; {args.threads} thread, {args.images} guided images, {args.rounds} rounds")
    for name, median in medians.items():
        print(f"{name}  {median:8.3f} ms a launch (fastest {min(took[name]):.3f})")
    print(f"int8 / fp32: {ratio:.2f} (median over pairs of launches)")
    scale = float(np.abs(exact).max())
    relative = {name: float(np.abs(got - exact).max()) / scale for name, got in errors.items()}
    for name, error in relative.items():
        print(f"int8 with {name}: {kernels_took[name]:.3f} ms, error {error:.1e} of the largest value")
    report = {"bundle": bundles["int8"].name, "int8": path.why, "ms": medians, "ratio": ratio, "error": relative}
    print(json.dumps({**report, "kernels_ms": kernels_took}))


def _ms(opened: Any, feeds: dict[str, np.ndarray]) -> float:
    started = time.perf_counter()
    opened.run(None, feeds)
    return 1000 * (time.perf_counter() - started)


def session(bundle: Bundle, options: Any) -> Any:
    return import_onnxruntime().InferenceSession(
        str(bundle.verified(StageName.HEAD)), options, providers=["CPUExecutionProvider"]
    )


def inputs(bundle: Bundle, images: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    sizes = {"R": 2 * images, "B": images}
    feeds = {}
    for tensor in bundle.stage(StageName.HEAD).inputs:
        if tensor.name == "rows":
            feeds[tensor.name] = np.arange(2 * images) % images
        else:
            feeds[tensor.name] = generator.standard_normal(tensor.sized(sizes)).astype(tensor.dtype)
    return feeds


if __name__ == "__main__":
    main()
