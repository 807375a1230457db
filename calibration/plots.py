"""The plots of a calibration report."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from bitdance_edge.calibration.findings import Findings
from bitdance_edge.runtime.bundle.files import written_whole
from bitdance_edge.runtime.bundle.stage_names import StageName

SHOWN_IMAGES = 10
SHOWN_SIDE = 64  # pixels of one image in the picture
DIFFERENCE_GAIN = 4
SHOWN_LAYERS = 16
DPI = 80
COLOURS = 64
STAGE_COLOURS: dict[str, str] = {
    StageName.TOKENS: "#59a14f",
    StageName.TIME: "#edc948",
    StageName.BACKBONE: "#4e79a7",
    StageName.MODULATION: "#f28e2b",
    StageName.HEAD: "#e15759",
    StageName.DECODER: "#b07aa1",
    StageName.ENCODER: "#9c755f",
}


def write_plots(findings: Findings, pixels: Mapping[str, np.ndarray], folder: Path) -> dict[str, str]:
    """Write all plots; return file name -> what it shows.

    Args:
        pixels: uint8 ``[images, H, W, 3]`` by the names ``reference`` and ``calibrated``.
    """
    made = {"images.png": "Reference, calibrated, and four times their difference"}
    with written_whole(folder / "images.png") as file:
        _images(pixels).save(file, format="PNG", optimize=True)
    save_chart(_bits(findings), folder / "bits.png")
    made["bits.png"] = "Bit flips, patch by patch"
    if findings.sensitivities:
        save_chart(_sensitivity(findings), folder / "sensitivity.png")
        made["sensitivity.png"] = "The most sensitive layers"
    if findings.steps():
        save_chart(_times(findings), folder / "times.png")
        made["times.png"] = "By sampling step: inputs of the head's layers (red), bit flips for an error there (black)"
    return made


def save_chart(figure: Figure, path: Path) -> None:
    """Write a chart as a PNG of few colours."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=DPI)
    # A chart needs few colours, and is a third of the size with them.
    few = Image.open(drawn).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    with written_whole(path) as file:
        few.save(file, format="PNG", optimize=True)


def _images(pixels: Mapping[str, np.ndarray]) -> Image.Image:
    want, got = (pixels[name][:SHOWN_IMAGES] for name in ("reference", "calibrated"))
    difference = np.clip(DIFFERENCE_GAIN * np.abs(want.astype(int) - got.astype(int)), 0, 255).astype(np.uint8)
    gap = np.full((max(1, want.shape[1] // 32), want.shape[2] * len(want), 3), 255, np.uint8)  # between rows
    first, *others = (np.concatenate(list(row), axis=1) for row in (want, got, difference))
    rows = np.concatenate([first, *(part for row in others for part in (gap, row))], axis=0)
    scale = SHOWN_SIDE / want.shape[1]
    return Image.fromarray(rows).resize(
        (round(rows.shape[1] * scale), round(rows.shape[0] * scale)), Image.Resampling.NEAREST
    )


def _bits(findings: Findings) -> Figure:
    figure = Figure(figsize=(7, 2.6), layout="constrained")
    axes = figure.subplots()
    bits = findings.losses.bits
    patches = np.arange(1, len(bits.forced_by_patch) + 1)
    axes.plot(patches, 100 * np.array(bits.free_by_patch), label="free generation", color="#e15759", marker=".")
    axes.plot(patches, 100 * np.array(bits.forced_by_patch), label="teacher forcing", color="#4e79a7", marker=".")
    axes.set(xlabel="patch", ylabel="bit flips, %", ylim=(0, None))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False)
    return _plain(figure, axes)


def _sensitivity(findings: Findings) -> Figure:
    items = [item for item in findings.sensitivities if item.layer.stage != StageName.DECODER]
    items = sorted(items, key=lambda item: -item.error)[:SHOWN_LAYERS][::-1]
    figure = Figure(figsize=(7, 0.24 * len(items) + 0.8), layout="constrained")
    axes = figure.subplots()
    colours = [STAGE_COLOURS.get(item.layer.stage, "gray") for item in items]
    kept = {name for search in findings.searches.values() for name in search.kept}
    axes.barh([item.layer.name for item in items], [item.error for item in items], color=colours)
    for row, item in enumerate(items):
        if item.layer.name in kept:
            axes.text(item.error, row, " kept", va="center", fontsize=7)
    axes.set_xlabel("change of predictions (encoder: of latents), this layer alone")
    axes.spines["right"].set_visible(False)
    axes.tick_params(axis="y", labelsize=7)
    axes.margins(x=0.2, y=0.01)
    return _plain(figure, axes)


def _times(findings: Findings) -> Figure:
    figure = Figure(figsize=(7, 3), layout="constrained")
    left = figure.subplots()
    for by_step in findings.steps().values():
        values = np.array(list(by_step.values()))
        relative = values / (values.max() or 1.0)
        left.plot(list(by_step), relative, color=STAGE_COLOURS[StageName.HEAD], alpha=0.35, linewidth=1)
    left.set(xlabel="sampling step", ylabel="largest input (red, relative)", ylim=(0, 1.05))
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    if findings.chosen.effects is not None:
        right = left.twinx()
        right.plot(100 * findings.chosen.effects, color="black", linewidth=1.5, marker=".")
        right.set(ylabel="bit flips, % (black)", ylim=(0, None))
        right.spines["top"].set_visible(False)
    return _plain(figure, left)


def _plain(figure: Figure, axes: Any) -> Figure:
    axes.spines["top"].set_visible(False)
    return figure
