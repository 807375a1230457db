"""How the time of an image grows with the images of a batch and with patches, next to the counted operations.

    python bench/studies/scaling.py bundles/digits-4x --images 1,2,4,8,16 --patches 4,8,16 -o FOLDER

Points take turns, one run of each in a round, after a warm-up run of the same work; the images of a batch have the
largest number of patches, and patches are varied for one image. The fixed cost of an image (prompt, decoder) runs at
another rate than its patches, so what further patches add, in time and in operations, is shown too. The last line is
JSON; the folder gets it with a table and a plot.
"""

import argparse
import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

from bitdance_edge.bench.launches import count_launches
from bitdance_edge.bench.measured import measured
from bitdance_edge.bench.operations import GraphCosts
from bitdance_edge.bench.ours import BundleContender
from bitdance_edge.bench.peers import OURS, backend_of
from bitdance_edge.bench.work import Work
from bitdance_edge.runtime.bundle.files import written_whole
from bitdance_edge.runtime.bundle.manifest import Bundle


@dataclass(frozen=True)
class Point:
    images: int
    patches: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--images", default="1,2,4,8,16", help="images at once (default 1,2,4,8,16)")
    parser.add_argument("--patches", help="patches of one image (default: a quarter, a half, all)")
    parser.add_argument("--steps", type=int, help="sampling steps (default: the bundle's)")
    parser.add_argument("--prompt", help="of a text-to-image bundle")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="FOLDER")
    args = parser.parse_args()
    bundle = Bundle.open(args.bundle)
    whole = bundle.model.default_size.patches
    patches = numbers(args.patches) if args.patches else sorted({max(1, whole // 4), max(1, whole // 2), whole})
    most = max(patches)
    points = list(dict.fromkeys([*(Point(n, most) for n in numbers(args.images)), *(Point(1, p) for p in patches)]))
    rows = measure(bundle, points, args)
    found = {
        "bundle": bundle.name,
        "steps": args.steps or bundle.sampling.steps,
        "threads": args.threads,
        "rounds": args.rounds,
        "images": scaling([row for row in rows if row["patches"] == most], "images"),
        "patches": scaling(sorted((r for r in rows if r["images"] == 1), key=lambda row: row["patches"]), "patches"),
    }
    page = "\n".join(table(found)) + "\n"
    for name, text in (("scaling.json", json.dumps(found, indent=1)), ("scaling.md", page)):
        with written_whole(args.out / name) as file:
            file.write(text.encode())
    plot(found, args.out / "scaling.png")
    print(page)
    print(json.dumps(found))


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def measure(bundle: Bundle, points: list[Point], args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return median seconds and counted operations of every point; all run on one open bundle, as in a server."""
    works = {
        point: Work(images=point.images, steps=args.steps, patches=point.patches, seed=1, prompt=args.prompt)
        for point in points
    }
    most = max(points, key=lambda point: point.images)
    contender = BundleContender(OURS, args.bundle, args.threads, works[most])
    runs: dict[Point, list[dict[str, Any]]] = {point: [] for point in points}
    for _ in tqdm(range(args.rounds), desc="rounds", disable=None):
        for point in points:
            contender.work = works[point]
            contender.image()  # allocates and binds memory of this size
            runs[point].append(measured(contender.image)[1])
    return [
        {
            "images": point.images,
            "patches": point.patches,
            "wall": median(run["wall"] for run in runs[point]),
            "cpu": median(run["cpu"] for run in runs[point]),
            "operations": operations(bundle, works[point], args.threads),
        }
        for point in points
    ]


def operations(bundle: Bundle, work: Work, threads: int) -> int:
    """Count the operations of all launches of a run, in one that is not timed."""
    launches = count_launches(bundle, backend_of(OURS, bundle, threads), work)
    graphs = {stage: GraphCosts(bundle.folder / spec.graph.path) for stage, spec in bundle.stages.items()}
    return sum(item.count * graphs[item.stage].cost(item.sizes).operations for item in launches)


def scaling(rows: list[dict[str, Any]], by: str) -> dict[str, Any]:
    """Add to each row its ratios to the first and what it adds to the one before; fit a line to the CPU seconds."""
    first = rows[0]
    for row in rows:
        row |= {f"{unit}_ratio": row[unit] / first[unit] for unit in ("wall", "cpu", "operations")}
    for before, row in pairwise(rows):
        row["added_cpu_per_operation"] = (row["cpu"] - before["cpu"]) / (row["operations"] - before["operations"])
    line = {}
    if len(rows) > 1:
        at, seconds = np.array([row[by] for row in rows], float), np.array([row["cpu"] for row in rows])
        slope, start = np.polyfit(at, seconds, 1)
        off = np.abs(slope * at + start - seconds) / seconds
        line = {"seconds_each": float(slope), "seconds_at_zero": float(start), "largest_deviation": float(off.max())}
    return {"rows": [dict(row) for row in rows], "line": line}


def table(found: dict[str, Any]) -> list[str]:
    lines = [
        f"{found['bundle']}, {found['steps']} steps, {found['threads']} threads, medians of {found['rounds']} rounds.",
    ]
    for by in ("images", "patches"):
        heads = f"{by} | CPU s | wall s | GFLOP | CPU | operations | CPU / operations | ms for each GFLOP added"
        lines += ["", f"| {heads} |", "|" + "---:|" * 8]
        for row in found[by]["rows"]:
            added = f"{1e12 * row['added_cpu_per_operation']:.3g}" if "added_cpu_per_operation" in row else ""
            lines.append(
                f"| {row[by]} | {row['cpu']:.3g} | {row['wall']:.3g} | {row['operations'] / 1e9:.3g} "
                f"| {row['cpu_ratio']:.2f} | {row['operations_ratio']:.2f} "
                f"| {row['cpu_ratio'] / row['operations_ratio']:.2f} | {added} |"
            )
        if line := found[by]["line"]:
            lines += [
                "",
                f"A line through these: {line['seconds_at_zero']:.3g} s and {line['seconds_each']:.3g} s for each of "
                f"the {by}; no point is more than {100 * line['largest_deviation']:.0f} % off.",
            ]
    return lines


def plot(found: dict[str, Any], path: Path) -> None:
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    for axes, by in zip(figure.subplots(1, 2), ("images", "patches"), strict=True):
        rows = found[by]["rows"]
        at = [row[by] for row in rows]
        axes.plot(at, [row["cpu_ratio"] for row in rows], marker="o", color="#e15759", label="CPU seconds")
        axes.plot(at, [row["operations_ratio"] for row in rows], "--", color="black", label="operations")
        axes.set(xlabel=f"{by}{' at once' if by == 'images' else ''}", ylabel="times the first", ylim=(0, None))
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    with written_whole(path) as file:
        figure.savefig(file, format="png", dpi=80)


if __name__ == "__main__":
    main()
