"""Plot what ``window_study.py`` measured: sweeps by window and steps, and what they evaluate in total.

python bench/studies/window_plots.py runs/window --out docs/sampler
"""

import argparse
import json
from pathlib import Path

import matplotlib.pyplot as plt


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    points = [point for path in sorted(args.runs.glob("*.json")) for point in json.loads(path.read_text("utf-8"))]
    least = max(point["tolerance"] for point in points)
    points = [point for point in points if point["tolerance"] == least]
    names = sorted({point["bundle"] for point in points})
    figure, axes = plt.subplots(2, len(names), figsize=(3.4 * len(names), 6), sharex=True, sharey="row", squeeze=False)
    for column, name in enumerate(names):
        draw(axes[:, column], name, [point for point in points if point["bundle"] == name])
    axes[0, 0].set_ylabel("sweeps, share of steps + 1")
    axes[1, 0].set_ylabel("evaluations, times steps + 1")
    axes[0, 0].legend(fontsize=8)
    figure.tight_layout()
    args.out.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out / "windows.png", dpi=110)
    print(args.out / "windows.png")


def draw(axes, name: str, points: list[dict]) -> None:
    """Sweeps above evaluations of one bundle, a line for each sampler and number of steps."""
    for sampler, steps in sorted({(point["sampler"], point["steps"]) for point in points}, reverse=True):
        line = sorted(
            (point["window"], point["sweeps"] / (steps + 1), point["evaluations"])
            for point in points
            if (point["sampler"], point["steps"]) == (sampler, steps)
        )
        windows, sweeps, evaluations = zip(*line, strict=True)
        style = {"marker": "o", "linestyle": "-" if sampler == "sde" else ":", "label": f"{sampler}, {steps} steps"}
        axes[0].plot(windows, sweeps, **style)
        axes[1].plot(windows, evaluations, **style)
    axes[0].set_title(name, fontsize=10)
    axes[0].set_xscale("log", base=2)
    axes[1].set_xlabel("window")
    for axis in axes:
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)


if __name__ == "__main__":
    main()
