"""Time whole images with and without a window, in turn on one idle machine.

    python bench/studies/window_times.py B-4x=FULL/B-4x B-16x=FULL/B-16x --windows 8,16 --threads 1,2 --out windows.json

Each round generates the first patches of one image without a window and then with each window, decoding nothing.
Medians over the rounds are printed with the tokens that differ, and the time of a single evaluation, or of a sweep:
random weights take other numbers of sweeps than trained ones. The JSON is rewritten after every row.
"""

import argparse
import json
import statistics
from dataclasses import replace
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np

from bitdance_edge.runtime import PatchDone, Pipeline, Request
from bitdance_edge.runtime.bundle.files import written_whole
from bitdance_edge.runtime.streaming import token_request
from bitdance_edge.runtime.window_costs import seconds_of_evaluation, seconds_of_sweep


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("bundles", nargs="+", metavar="NAME=BUNDLE")
    add("--windows", default="8")
    add("--threads", default="1,2")
    add("--patches", type=int, help="of an image (default: all)")
    add("--rounds", type=int, default=3)
    add("--device", choices=("cpu", "cpu:bf16"), default="cpu")
    add("--out", type=Path, required=True)
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for threads in map(int, args.threads.split(",")):
        for name, _, folder in (pair.partition("=") for pair in args.bundles):
            for row in timed(folder, [1, *map(int, args.windows.split(","))], threads, args):
                rows.append({"model": name, "threads": threads, **row})
                print(json.dumps(rows[-1]), flush=True)
                with written_whole(args.out) as file:
                    file.write((json.dumps(rows, indent=1) + "\n").encode())


def timed(folder: str, windows: list[int], threads: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each window: medians over the rounds, and the bits that differ from those without one."""
    seconds: dict[int, list[float]] = {window: [] for window in windows}
    cpu: dict[int, list[float]] = {window: [] for window in windows}
    tokens: dict[int, np.ndarray] = {}
    with Pipeline.open(folder, device=args.device, threads=threads, max_batch=1) as pipeline:
        request = replace(Request.example(pipeline.bundle), seed=1, output="tokens")
        for window in windows:  # loads the stages, and binds them
            patches(pipeline, replace(request, window=window), 2)
        for _ in range(args.rounds):
            for window in windows:
                started, used = perf_counter(), process_time()
                tokens[window] = patches(pipeline, replace(request, window=window), args.patches)
                seconds[window].append(perf_counter() - started)
                cpu[window].append(process_time() - used)
        passes = {window: seconds_of_pass(pipeline, replace(request, window=window)) for window in windows}
    return [
        {
            "window": window,
            "seconds": round(statistics.median(seconds[window]), 3),
            "CPU seconds": round(statistics.median(cpu[window]), 3),
            "times as fast": round(statistics.median(seconds[1]) / statistics.median(seconds[window]), 3),
            "bits differ": int((tokens[window] != tokens[1]).sum()),
            "bits": tokens[window].size,
            "rounds": [round(each, 3) for each in seconds[window]],
            "ms a pass": round(1000 * passes[window], 3),
        }
        for window in windows
    ]


def seconds_of_pass(pipeline: Pipeline, request: Request) -> float:
    """The time of one evaluation of the head, or of one sweep."""
    with pipeline.loaded.loop(token_request(request.resolve(pipeline.bundle)).shape) as loop:
        return seconds_of_evaluation(loop) if request.window == 1 else seconds_of_sweep(loop)


def patches(pipeline: Pipeline, request: Request, count: int | None) -> np.ndarray:
    """The tokens of the first patches of an image."""
    found = []
    events = pipeline.stream(request)
    for event in events:
        if isinstance(event, PatchDone):
            found.append(event.tokens)
            if len(found) == count:
                break
    events.close()
    return np.concatenate(found, axis=1)


if __name__ == "__main__":
    main()
