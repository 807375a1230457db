"""Plots and tables of the results of bench/studies/sampler_study.py.

    python bench/studies/sampler_plots.py runs/sampler --bundles bundles --out docs/sampler

Writes steps.png, guidance.png, time.png and pictures.png, and prints the tables as Markdown.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from bitdance_edge.calibration.plots import save_chart
from bitdance_edge.runtime import Pipeline, Request

MODELS = ("digits-1x", "digits-4x", "digits-16x", "shapes-16x")
LOOK = {"sde": ("#4e79a7", "o"), "ode": ("#e15759", "s")}
RIGHT = {"class_agreement": "read as asked, %", "all_right": "captions all right, %"}
PICTURED = {"digits-4x": ("3", "7", "8", "5"), "shapes-16x": ("a red circle above a blue square", "a green star")}
PICTURED_STEPS = (5, 10, 20, 50, 100)
SIDE = 64

Result = dict[str, Any]


def results(folder: Path, model: str) -> list[Result]:
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob(f"{model}-*.json"))]
    return sorted(
        found, key=lambda result: (result["sampler"], result["schedule"], result["guidance"], result["steps"])
    )


def right(result: Result) -> float:
    return 100 * result.get("class_agreement", result.get("all_right", 0.0))


def lines(found: Sequence[Result], x: str, **fixed: object) -> Iterator[tuple[str, str, list[Result]]]:
    """Sampler, schedule and results along ``x``, of those that have the fixed values."""
    kept = [result for result in found if all(result[key] == value for key, value in fixed.items())]
    for sampler in LOOK:
        for schedule in ("constant", "linear"):
            line = [r for r in kept if r["sampler"] == sampler and r["schedule"] == schedule]
            if len(line) > 1:
                yield sampler, schedule, sorted(line, key=lambda result: result[x])


def panel(axes: Axes, found: Sequence[Result], x: str, value: str, **fixed: object) -> None:
    for sampler, schedule, line in lines(found, x, **fixed):
        color, marker = LOOK[sampler]
        values = [right(r) if value == "right" else r[value] for r in line]
        style = "-" if schedule == "constant" else ":"
        axes.plot([r[x] for r in line], values, style, color=color, marker=marker, markersize=3, linewidth=1)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.3)


def rows_of(model: str) -> tuple[tuple[str, str], ...]:
    if model.startswith("digits"):
        return (("right", "read as asked, %"), ("frechet", "Fréchet distance"), ("bit_spread", "spread of bits"))
    return (("right", "captions right, %"), ("both", "things right"), ("bit_spread", "spread of bits"))


def over(folder: Path, x: str, label: str, **fixed: object) -> Figure:
    """Quality of every model along one setting."""
    figure = Figure(figsize=(11, 6), layout="constrained")
    for column, model in enumerate(MODELS):
        found = results(folder / "points", model)
        for row, (value, name) in enumerate(rows_of(model)):
            axes = figure.add_subplot(3, len(MODELS), row * len(MODELS) + column + 1)
            panel(axes, found, x, value, **_published(found, fixed))
            if value == "frechet":
                axes.axhline(found[0]["frechet_floor"], color="#777", linewidth=0.8, linestyle="--")
            if value == "bit_spread":
                axes.axhline(1, color="#777", linewidth=0.8, linestyle="--")
                axes.set_xlabel(label, fontsize=8)
            if x == "steps":
                axes.set_xscale("log", base=10)
                axes.set_xticks([2, 5, 10, 20, 50, 100], ["2", "5", "10", "20", "50", "100"])
                axes.minorticks_off()
            axes.set_title(f"{model}: {name}", fontsize=8)
    figure.suptitle("blue: sde, red: ode, dotted: linear guidance; dashed: real images", fontsize=8)
    return figure


def _published(found: Sequence[Result], fixed: dict[str, object]) -> dict[str, object]:
    """``guidance=None`` stands for the guidance at which the steps were varied."""
    if "guidance" in fixed:
        (guidance,) = {r["guidance"] for r in found if r["steps"] == 30}
        return {**fixed, "guidance": guidance}
    return fixed


def against_time(folder: Path) -> Figure:
    figure = Figure(figsize=(11, 2.6), layout="constrained")
    figure.suptitle("blue: sde, red: ode; numbers: steps", fontsize=8)
    for column, model in enumerate(MODELS):
        found = [r for r in results(folder / "points", model) if r["schedule"] == "constant"]
        found = [{**r, "ms": 1000 * r["cpu_seconds_an_image"]} for r in found]
        axes = figure.add_subplot(1, len(MODELS), column + 1)
        value, name = rows_of(model)[1]
        panel(axes, found, "ms", value, **_published(found, {"guidance": None}))
        for r in (r for r in found if r["sampler"] == "sde" and r["steps"] in (5, 20, 100)):
            if r["guidance"] == _published(found, {"guidance": None})["guidance"]:
                axes.annotate(
                    str(r["steps"]), (r["ms"], r[value]), fontsize=7, textcoords="offset points", xytext=(3, 3)
                )
        axes.set_xscale("log")
        ticks = [tick for tick in (10, 20, 50, 100, 200, 500) if tick <= 1.1 * max(r["ms"] for r in found)]
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.minorticks_off()
        axes.set_title(f"{model}: {name}", fontsize=8)
        axes.set_xlabel("CPU ms an image", fontsize=8)
    return figure


def pictures(bundles: Path) -> Image.Image:
    """Draw the same seeds with both samplers, a row each, with more steps from left to right."""
    rows = []
    for model, subjects in PICTURED.items():
        with Pipeline.open(bundles / model, device="cpu", threads=1) as pipeline:
            asked = {"prompts" if pipeline.bundle.text else "classes": subjects}
            for sampler in LOOK:
                made = [
                    pipeline.generate(Request(seed=11, steps=steps, sampler=sampler, published=True, **asked))
                    for steps in PICTURED_STEPS
                ]
                tiles = [column[i].to_pil().resize((SIDE, SIDE)) for i in range(len(subjects)) for column in made]
                rows.append(np.concatenate([np.asarray(tile) for tile in tiles], axis=1))
    width = max(row.shape[1] for row in rows)
    padded = [np.pad(row, ((0, 4), (0, width - row.shape[1]), (0, 0)), constant_values=255) for row in rows]
    return Image.fromarray(np.concatenate(padded))


def same_bits(folder: Path, line: Sequence[Result]) -> list[float]:
    """Return, for results along the steps, the share of bits equal to those of the same seeds with the most steps."""

    def bits(result: Result) -> np.ndarray:
        point = "-".join(str(result[key]) for key in ("model", "sampler", "steps"))
        return np.load(folder / "points" / f"{point}-{result['guidance']:g}-{result['schedule']}.npy")

    final = np.unpackbits(bits(line[-1]))
    return [float(np.mean(np.unpackbits(bits(result)) == final)) for result in line]


def tables(folder: Path) -> Iterator[str]:
    for model in MODELS:
        found = results(folder / "points", model)
        digits = model.startswith("digits")
        floor = f", Fréchet floor {found[0]['frechet_floor']:.2f}" if digits else ""
        yield f"\n{model}, {found[0]['images']} images a point{floor}\n"
        quality = "read as asked | Fréchet (halves) | features" if digits else "captions right | things right | colors"
        yield f"| sampler | steps | guidance | {quality} | bits | ms |"
        yield "|---|---|---|---|---|---|---|---|"
        for r in found:
            first = f"{r['sampler']} | {r['steps']} | {r['guidance']:g} {r['schedule']} | {right(r):.1f} %"
            halves = "/".join(f"{half:.1f}" for half in r.get("frechet_of_halves", ()))
            middle = (
                f"{r['frechet']:.2f} ({halves}) | {r['feature_spread']:.2f}"
                if digits
                else f"{100 * r['both']:.1f} % | {100 * r['color']:.1f} %"
            )
            yield f"| {first} | {middle} | {r['bit_spread']:.3f} | {1000 * r['cpu_seconds_an_image']:.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="folder that bench/studies/sampler_study.py wrote")
    parser.add_argument("--bundles", type=Path, required=True, help="folder of the exported bundles, for the pictures")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    print("\n".join(tables(args.study)))
    for model in MODELS:
        found = results(args.study / "points", model)
        fixed = _published(found, {"guidance": None})
        for sampler, _, line in lines(found, "steps", schedule="constant", **fixed):
            shares = ", ".join(
                f"{r['steps']}: {share:.3f}" for r, share in zip(line, same_bits(args.study, line), strict=True)
            )
            print(f"{model} {sampler}, bits as with {line[-1]['steps']} steps: {shares}")
    save_chart(over(args.study, "steps", "sampling steps", schedule="constant", guidance=None), args.out / "steps.png")
    save_chart(over(args.study, "guidance", "guidance", steps=10), args.out / "guidance.png")
    save_chart(against_time(args.study), args.out / "time.png")
    pictures(args.bundles).save(args.out / "pictures.png", optimize=True)


if __name__ == "__main__":
    main()
