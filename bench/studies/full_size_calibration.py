"""A full-size bundle calibrated here: seconds and peak memory of the whole command, and sizes before and after.

    python bench/studies/full_size.py --variant B-4x --work FOLDER     # makes FOLDER/bundle
    python bench/studies/full_size_calibration.py FOLDER/bundle --precision int8 --work FOLDER

Random weights say nothing about quality: few patches and steps are recorded, at the real shapes. The last line is JSON.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from bitdance_edge.runtime import Bundle


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--precision", default="int8")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--patches", type=int, default=2)
    parser.add_argument("--steps", type=int, default=4)
    args, others = parser.parse_known_args()
    out = args.work / f"{Path(args.bundle).name}-{args.precision}"
    few = ["--images", "1", "--held-out", "1", "--test-images", "1", "--no-sensitivity"]
    few += ["--patches", str(args.patches), "--steps", str(args.steps)]
    command = ["calibrate", args.bundle, "--precision", args.precision, "-o", str(out), "--force", *few, *others]
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "bitdance_edge", *command])
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit("calibration failed")
    seconds, peak = time.perf_counter() - started, usage.ru_maxrss / 1e3
    before, after = Bundle.open(args.bundle), Bundle.open(out)
    print("| stage | precision | MB before | MB |\n|---|---|---:|---:|")
    for name, stage in after.stages.items():
        print(f"| {name} | {stage.precision} | {before.stages[name].bytes / 1e6:.1f} | {stage.bytes / 1e6:.1f} |")
    total = [sum(stage.bytes for stage in bundle.stages.values()) / 1e6 for bundle in (before, after)]
    print(f"\n{seconds:.0f} s, processor {usage.ru_utime + usage.ru_stime:.0f} s, peak memory {peak:.0f} MB")
    print(json.dumps({"bundle": before.name, "seconds": seconds, "peak_mb": peak, "mb": total}))


if __name__ == "__main__":
    main()
