"""The operators that a stage's time goes to, from ONNX Runtime's trace of a short generation.

Only shares are reported: tracing itself takes time, so seconds come from the untraced runs.
"""

import json
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

from bitdance_edge.bench.ours import draw
from bitdance_edge.bench.work import Work
from bitdance_edge.runtime import Pipeline
from bitdance_edge.runtime.bundle.manifest import Bundle

TRACED_STEPS, TRACED_PATCHES = 6, 2


def operator_shares(folder: str, threads: int, work: Work) -> dict[str, dict[str, float]]:
    """Return stage -> operator -> share of the time of all its operators, largest first."""
    bundle = Bundle.open(folder)
    steps = min(work.settings(bundle).steps, TRACED_STEPS)
    short = replace(work, steps=steps, patches=min(work.drawn(bundle), TRACED_PATCHES))
    with tempfile.TemporaryDirectory() as place:
        traces = Path(place)
        with Pipeline.open(
            folder, backend="onnxruntime-cpu", threads=threads, max_batch=work.images, trace=traces
        ) as pipeline:
            draw(pipeline, short)
            draw(pipeline, short)  # the first launches are slower
        found = {name: next(traces.glob(f"{name}_*.json"), None) for name in bundle.stages}
        return {name: _shares(path) for name, path in found.items() if path is not None}


def _shares(trace: Path) -> dict[str, float]:
    spent: Counter[str] = Counter()
    for event in json.loads(trace.read_text(encoding="utf-8")):
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            spent[event["args"]["op_name"]] += event["dur"]
    return {name: time / spent.total() for name, time in spent.most_common() if spent.total()}
