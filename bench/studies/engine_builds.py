"""Engines of a bundle, built one stage a process: sizes, seconds and peak memory of each, as a Markdown table.

    python bench/studies/engine_builds.py BUNDLE --target rtx:8.9

Each stage is built by ``bitdance-edge build --stages STAGE --force`` in a process of its own, so that its peak memory
is measured alone; the peak includes Python, TensorRT's libraries (about 0.3 GB) and the plan's check of the ONNX files.
"""

import argparse
import json
import os
import platform
import subprocess
import sys

from bitdance_edge.engines.targets import parse_engine_target
from bitdance_edge.runtime import Bundle
from bitdance_edge.runtime.bundle.record import BuildRecord, record_path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--target", default="rtx")
    parser.add_argument("--stages", help="comma-separated (default: all)")
    args = parser.parse_args()
    bundle, target = Bundle.open(args.bundle), parse_engine_target(args.target)
    rows, library = [], ""
    for stage in args.stages.split(",") if args.stages else bundle.stages:
        command = ["-m", "bitdance_edge", "build", args.bundle, "--target", target.name, "--stages", stage]
        process = subprocess.Popen([sys.executable, *command, "--force"], stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise SystemExit(f"building {stage} failed")
        record = BuildRecord.read(record_path(target.folder(bundle), stage))
        library = f"{record.library} {record.library_version}"
        rows.append(
            {
                "stage": stage,
                "types": record.precision,
                "onnx_mb": bundle.stage(stage).bytes / 1e6,
                "engine_mb": record.bytes / 1e6,
                "seconds": record.seconds,
                "peak_mb": usage.ru_maxrss / 1e3,
                "layers": sum(sum(types.values()) for types in record.layers.values()),
            }
        )
        print(f"{stage}: {rows[-1]}", file=sys.stderr, flush=True)
    print(f"{library}, {target.name}, {os.cpu_count()} cores, {platform.machine()}\n")
    print("| stage | types | ONNX MB | engine MB | seconds | peak memory MB | layers parsed |")
    print("|---|---|---:|---:|---:|---:|---:|")
    for row in rows:
        print(
            f"| {row['stage']} | {row['types']} | {row['onnx_mb']:.1f} | {row['engine_mb']:.1f} | {row['seconds']:.1f} "
            f"| {row['peak_mb']:.0f} | {row['layers']} |"
        )
    print()
    print(json.dumps({"bundle": bundle.name, "target": target.name, "rows": rows}))


if __name__ == "__main__":
    main()
