"""The plot of a comparison: each contender's time by stage, and how far a bundle's stages are from the floor."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bitdance_edge.calibration.plots import DPI, STAGE_COLOURS
from bitdance_edge.runtime.bundle.files import written_whole

OTHER = "#bab0ac"
SHOWN_SHARE = 0.02  # of the image; the distance of smaller stages from the floor does not matter


def write_plot(threads: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw one row for each number of threads."""
    figure = Figure(figsize=(10, 0.6 + 2.6 * len(threads)), layout="constrained")
    rows = figure.subplots(len(threads), 2, squeeze=False)
    for (bars, floors), entry in zip(rows, threads, strict=True):
        _stacked(bars, entry)
        _distances(floors, entry)
        for axes in (bars, floors):
            axes.spines[["top", "right"]].set_visible(False)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=DPI)
    with written_whole(path) as file:
        file.write(drawn.getvalue())


def _stacked(axes: Axes, entry: Mapping[str, Any]) -> None:
    contenders = entry["contenders"][::-1]
    names = [contender["name"] for contender in contenders]
    stages = dict.fromkeys(name for contender in contenders for name in contender["stages"])
    left = [0.0] * len(contenders)
    for stage in stages:
        seconds = [contender["stages"].get(stage, {}).get("seconds", 0.0) for contender in contenders]
        axes.barh(names, seconds, left=left, color=STAGE_COLOURS.get(stage, OTHER), label=stage)
        left = [a + b for a, b in zip(left, seconds, strict=True)]
    overhead = [max(0.0, contender["overhead"]["seconds"]) for contender in contenders]
    axes.barh(names, overhead, left=left, color="black", label="between the stages")
    axes.set(xlabel="wall seconds an image", title=f"{entry['threads']} thread{'s' if entry['threads'] > 1 else ''}")
    axes.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))


def _distances(axes: Axes, entry: Mapping[str, Any]) -> None:
    """Draw each stage's time as a multiple of its floor."""
    bars = [
        (f"{contender['name']}: {name}" if several else name, name, stage)
        for several in [sum(contender["kind"] == "ours" for contender in entry["contenders"]) > 1]
        for contender in entry["contenders"]
        for name, stage in contender["stages"].items()
        if stage.get("to_floor") and stage["share"] >= SHOWN_SHARE
    ][::-1]
    for row, (_, name, stage) in enumerate(bars):
        axes.barh(row, stage["to_floor"], color=STAGE_COLOURS.get(name, OTHER))
        axes.text(stage["to_floor"], row, f" {stage['bound']}, {100 * stage['share']:.0f} %", va="center", fontsize=7)
    axes.set_yticks(range(len(bars)), [label for label, _, _ in bars])
    axes.axvline(1, color="black", linewidth=1)
    axes.margins(x=0.35)
    axes.set(xlabel="times the floor", xlim=(0, None))
