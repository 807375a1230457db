"""Plot what ``window_study.py`` measured: sweeps by window and steps, and what they evaluate in total.

Float32 with each sampler and number of steps; other precisions with the most steps of each.

python bench/studies/window_plots.py runs/window --out docs/sampler
"""

import argparse
import json
from pathlib import Path

import matplotlib.pyplot as plt

LINES = {"sde": "-", "ode": ":"}
COLOURS = {"int8": "C3", "bf16": "C4"}  # of float32, a colour for each number of steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    points = [point for path in sorted(args.runs.glob("*.json")) for point in json.loads(path.read_text("utf-8"))]
    least = max(point["tolerance"] for point in points)
    points = [point for point in points if point["tolerance"] == least]
    names = sorted({model_of(point) for point in points})
    figure, axes = plt.subplots(2, len(names), figsize=(3.4 * len(names), 6), sharex=True, sharey="row", squeeze=False)
    for column, name in enumerate(names):
        draw(axes[:, column], name, [point for point in points if model_of(point) == name])
    axes[0, 0].set_ylabel("sweeps, share of steps + 1")
    axes[1, 0].set_ylabel("evaluations, times steps + 1")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="lower center", ncols=4, fontsize=9)
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    args.out.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out / "windows.png", dpi=110)
    print(args.out / "windows.png")


def model_of(point: dict) -> str:
    """The model, of which a bundle of another precision has the name too."""
    return point["bundle"].removesuffix(f"-{point['precision']}")


def draw(axes, name: str, points: list[dict]) -> None:
    """Sweeps above evaluations of one model, a line for each precision, sampler and number of steps."""
    most = max(point["steps"] for point in points)
    settings = {(point["precision"], point["sampler"], point["steps"]) for point in points}
    for precision, sampler, steps in sorted(settings, key=lambda each: (each[0] != "fp32", each)):
        plain = precision == "fp32"
        if not plain and steps < most:
            continue
        line = sorted(
            (point["window"], point["sweeps"] / (steps + 1), point["evaluations"])
            for point in points
            if (point["precision"], point["sampler"], point["steps"]) == (precision, sampler, steps)
        )
        windows, sweeps, evaluations = zip(*line, strict=True)
        label = f"{sampler}, {steps} steps" + ("" if plain else f", {precision}")
        colour = COLOURS[precision] if not plain else f"C{sorted({each[2] for each in settings}).index(steps)}"
        style = {"marker": "o", "linestyle": LINES[sampler], "color": colour, "label": label}
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
