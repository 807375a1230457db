"""The table, the curve and the contact sheets of docs/edit.md, from the results of bench/studies/edit_study.py.

    python bench/studies/edit_pages.py runs/edit bundles/digits-4x bundles/shapes-16x --out docs/edit

Writes strength.png, digits.png and shapes.png, and prints the tables as Markdown.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from edit_study import SIDES, STRENGTHS, side_mask
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from bitdance_edge.calibration.plots import save_chart
from bitdance_edge.runtime import Pipeline, Request, RequestError, save_png
from bitdance_edge.training.data import digits
from bitdance_edge.training.shapes import Scene, Thing, render

DIGITS, SHAPES = "digits-4x", "shapes-16x"
SHOWN = (0.35, 0.5, 0.6, 0.7, 0.8, 1.0)
PAINTED = (255, 90, 90)
CELL, GAP, TITLE, FONT = 96, 4, 34, 12
Picture = np.ndarray


def results(folder: Path, model: str) -> dict[str, dict[str, Any]]:
    files = sorted(folder.glob(f"{model}-*.json"))
    return {file.stem.removeprefix(f"{model}-"): json.loads(file.read_text(encoding="utf-8")) for file in files}


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    print("\n| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for row in rows:
        print("| " + " | ".join(f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in row) + " |")


def tables(digit: dict[str, Any], shape: dict[str, Any]) -> None:
    of = [(strength, *(digit[f"vary-{what}-{strength}"] for what in ("same", "other"))) for strength in STRENGTHS]
    table(
        ("strength", "same class: read right", "bits kept", "other class: read as it", "bits kept", "head launches"),
        [
            (s, a["agreement"], a["bits_kept"], b["agreement"], b["bits_kept"], f"{b['head_launches']:.0f}")
            for s, a, b in of
        ],
    )
    found = [(s, *(shape[f"vary-{what}-{s}"] for what in ("same", "color", "shape"))) for s in STRENGTHS]
    table(
        (
            "strength",
            "same: both right",
            "bits kept",
            "other color: taken",
            "shape kept",
            "other shape: taken",
            "color kept",
            "head launches",
        ),
        [
            (s, a["both"], a["bits_kept"], b["color"], b["shape"], c["shape"], c["color"], f"{c['head_launches']:.0f}")
            for s, a, b, c in found
        ],
    )
    masks = [(side, digit[f"mask-{side}-1"], digit.get(f"mask-{side}-8")) for side in SIDES]
    table(
        ("digits, redrawn", "read right", "bits kept", "head launches", "of 8 candidates: read right", "head launches"),
        [
            (side, a["agreement"], a["bits_kept"], f"{a['head_launches']:.0f}", *shown(b, "agreement"))
            for side, a, b in masks
        ],
    )
    for what, title in (("half-", "one thing, half of it redrawn"), ("", "one of two things redrawn as another")):
        sides = [(s, *(shape.get(f"mask-{what}{s}-{n}") for n in (1, 8))) for s in SIDES if s != "middle"]
        table(
            (title, "both right", "of 8 candidates"),
            [(s, a["both"], "-" if b is None else b["both"]) for s, a, b in sides if a],
        )


def shown(result: dict[str, Any] | None, key: str) -> tuple[object, object]:
    return ("-", "-") if result is None else (result[key], f"{result['head_launches']:.0f}")


def curve(digit: dict[str, Any], shape: dict[str, Any], path: Path) -> None:
    figure = Figure(figsize=(8, 3), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    lines = (
        (left, digit, "other", (("agreement", "read as the other class"), ("bits_kept", "bits kept"))),
        (right, shape, "color", (("color", "other color taken"), ("shape", "shape kept"), ("bits_kept", "bits kept"))),
    )
    for axes, found, what, values in lines:
        for (key, label), color in zip(values, ("#4e79a7", "#e15759", "#59a14f"), strict=False):
            points = [100 * found[f"vary-{what}-{strength}"][key] for strength in STRENGTHS]
            axes.plot(STRENGTHS, points, "o-", label=label, color=color, markersize=3, linewidth=1)
        axes.set_xlabel("strength", fontsize=8)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    left.set_title(DIGITS, fontsize=9)
    right.set_title(SHAPES, fontsize=9)
    left.set_ylabel("%", fontsize=8)
    save_chart(figure, path)


def sheet(titles: Sequence[str], rows: Sequence[Sequence[Picture]], path: Path) -> None:
    """One row of pictures for each image, under the titles of the columns."""
    width, height = len(titles) * (CELL + GAP) + GAP, TITLE + len(rows) * (CELL + GAP)
    drawn = Image.new("RGB", (width, height), "white")
    draw, font = ImageDraw.Draw(drawn), ImageFont.load_default(size=FONT)
    for column, title in enumerate(titles):
        at = (GAP + column * (CELL + GAP) + CELL // 2, TITLE // 2)
        draw.multiline_text(at, title, fill="black", font=font, anchor="mm", align="center")
        for row, pictures in enumerate(rows):
            picture = Image.fromarray(pictures[column]).resize((CELL, CELL), Image.Resampling.NEAREST)
            drawn.paste(picture, (GAP + column * (CELL + GAP), TITLE + row * (CELL + GAP)))
    save_png(drawn, path)


def pictures(pipeline: Pipeline, request: Request) -> list[Picture]:
    return [np.asarray(image.to_pil()) for image in pipeline.generate(request)]


def painted(picture: Picture, mask: np.ndarray) -> Picture:
    """The picture with what is redrawn tinted."""
    scale = len(picture) // len(mask)
    white = np.kron(mask, np.ones((scale, scale), bool))[..., None]
    return np.where(white, (0.45 * picture + 0.55 * np.array(PAINTED)).astype(np.uint8), picture)


def mask_columns(pipeline: Pipeline, asked: Request, init: Picture, masks: Sequence[np.ndarray]) -> list[list[Picture]]:
    """The rows of pictures redrawn in one mask each: as it was, painted, three seeds, and without the blend."""
    columns = [list(init), [painted(one, mask) for one, mask in zip(init, masks, strict=True)]]
    made = []
    for one, mask, subject in zip(init, masks, asked.subjects, strict=True):
        kind = "prompts" if pipeline.bundle.text else "classes"
        alone = replace(asked, **{kind: [subject]}, init=one, mask=mask)
        alone = replace(alone, candidates=most_candidates(pipeline, alone))
        blended = [pictures(pipeline, replace(alone, seed=seed))[0] for seed in (100, 200, 300)]
        made.append([*blended, pictures(pipeline, replace(alone, seed=100, blend=False))[0]])
    return columns + [list(column) for column in zip(*made, strict=True)]


def most_candidates(pipeline: Pipeline, asked: Request) -> int:
    """8, or 1 where nothing that is kept comes after what is redrawn."""
    try:
        replace(asked, candidates=8).resolve(pipeline.bundle)
    except RequestError:
        return 1
    return 8


def draw_sheet(
    pipeline: Pipeline, init: Picture, redrawn: Request, masks: Sequence[np.ndarray], varied: Request, out: Path
) -> None:
    columns = mask_columns(pipeline, redrawn, init, masks)
    titles = ["original", "redrawn", "seed 100", "seed 200", "seed 300", "seed 100,\nno blend"]
    for strength in SHOWN:
        columns.append(pictures(pipeline, replace(varied, init=init, strength=strength, seed=1)))
        titles.append(f"other,\nstrength {strength:g}")
    sheet(titles, list(zip(*columns, strict=True)), out)


def digits_sheet(bundle: str, path: Path) -> None:
    sides = ("middle", "top", "left", "right", "bottom", "middle", "left", "right")
    with Pipeline.open(bundle, device="cpu") as pipeline:
        held_out = digits(32).split()[1]
        rows = [int(np.flatnonzero(held_out.labels.numpy() == number)[0]) for number in range(8)]
        init, masks = held_out.images.numpy()[rows], [side_mask(side) for side in sides]
        varied = Request(classes=[(number + 3) % 10 for number in range(8)])
        draw_sheet(pipeline, init, Request(classes=list(range(8))), masks, varied, path)


def shapes_sheet(bundle: str, path: Path) -> None:
    scenes = [
        Scene((Thing("red", "circle"), Thing("blue", "square")), "to the left of"),
        Scene((Thing("green", "star"), Thing("purple", "circle")), "above"),
        Scene((Thing("orange", "triangle"), Thing("black", "star")), "to the right of"),
        Scene((Thing("cyan", "square"), Thing("red", "triangle")), "below"),
        Scene((Thing("blue", "circle"),)),
        Scene((Thing("purple", "star"),)),
    ]
    changed = [  # the thing under the mask, or the only one
        replace(scenes[0], things=(Thing("green", "star"), scenes[0].things[1])),
        replace(scenes[1], things=(scenes[1].things[0], Thing("red", "square"))),
        replace(scenes[2], things=(scenes[2].things[0], Thing("blue", "circle"))),
        replace(scenes[3], things=(scenes[3].things[0], Thing("green", "circle"))),
        Scene((Thing("orange", "circle"),)),
        Scene((Thing("purple", "square"),)),
    ]
    inner = np.zeros((8, 8), bool)
    inner[1:7, 1:7] = True
    with Pipeline.open(bundle, device="cpu") as pipeline:
        masks = [*map(side_mask, ("left", "bottom", "left", "top")), inner, inner]
        asked = Request(prompts=[scene.caption for scene in changed])
        draw_sheet(pipeline, render(scenes, 64, 5), asked, masks, asked, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("digits")
    parser.add_argument("shapes")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    digit, shape = results(args.results, DIGITS), results(args.results, SHAPES)
    tables(digit, shape)
    curve(digit, shape, args.out / "strength.png")
    digits_sheet(args.digits, args.out / "digits.png")
    shapes_sheet(args.shapes, args.out / "shapes.png")


if __name__ == "__main__":
    main()
