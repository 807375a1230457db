"""What previews cost and how close they are to the image: full ones by the decoder, fast ones by a linear map.

    python bench/studies/previews.py bundles/digits-1x bundles/digits-4x bundles/digits-16x bundles/shapes-16x
    python bench/studies/previews.py --published     # fast previews alone, at the sizes of published models

Cost: CPU seconds of a single image, compared with one without previews, in alternating rounds. Closeness: PSNR of the
pixels drawn after a quarter, a half and three quarters of the patches, and of a preview of all tokens, to the same
pixels of the image (null in JSON: identical). The last line is JSON.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from bitdance_edge.runtime import Pipeline, Request
from bitdance_edge.runtime.bundle.specs import ImageSize
from bitdance_edge.runtime.preview import WINDOW, PreviewCanvas, PreviewMap, undrawn
from bitdance_edge.runtime.quality import psnr
from bitdance_edge.training.shapes import all_scenes

SEED = 300
SHOWN = 3
PARTS = (0.25, 0.5, 0.75, 1.0)


def subjects(pipeline: Pipeline, images: int) -> Request:
    if pipeline.bundle.text is None:
        return Request(classes=[i % pipeline.bundle.model.num_classes for i in range(images)], seed=SEED)
    captions = [scene.caption for scene in all_scenes() if scene.held_out]
    return Request(prompts=[captions[17 * i % len(captions)] for i in range(images)], seed=SEED)


def costs(pipeline: Pipeline, request: Request, rounds: int) -> dict[str, float]:
    """Return median CPU seconds of one image with each kind of previews; "none" is without."""
    patches = pipeline.bundle.model.default_size.patches
    kinds = {
        "none": request,
        "full, four an image": replace(request, preview_every=max(1, patches // 4)),
        "full, every patch": replace(request, preview_every=1),
        "full, share 0.1": replace(request, preview_share=0.1),
    }
    if pipeline.bundle.fast_preview is not None:
        kinds["fast, every patch"] = replace(request, preview_every=1, preview_kind="fast")
    spent: dict[str, list[float]] = {name: [] for name in kinds}
    for number in tqdm(range(rounds + 1), unit="round", leave=False):
        for name, asked in kinds.items():
            started = time.process_time()
            list(pipeline.stream(asked))
            if number:  # the first round is a warm-up
                spent[name].append(time.process_time() - started)
    return {name: median(seconds) for name, seconds in spent.items()}


def closeness(pipeline: Pipeline, request: Request) -> dict[str, list[float]]:
    """Return the PSNR of each kind for each of ``PARTS``, over the pixels drawn by then."""
    model, made = pipeline.bundle.model, pipeline.generate(request)
    size, tokens = model.default_size, np.stack([image.tokens for image in made])
    pixels = np.stack([np.asarray(image.to_pil()) for image in made])
    found: dict[str, list[float]] = {"full": [], "fast": []}
    for part in PARTS:
        known = round(part * size.patches) * model.tokens_per_step
        seen = ~undrawn(size, known, model.patch_side)
        full = pipeline.preview(tokens[:, :known], [image.seed for image in made])
        found["full"].append(psnr(full[:, seen], pixels[:, seen]))
        if pipeline.bundle.fast_preview is not None:
            canvas = pipeline.preview_canvas(len(made))
            canvas.add(tokens[:, :known])
            found["fast"].append(psnr(canvas.pixels[:, seen], pixels[:, seen]))
    return found


def picture(pipeline: Pipeline, request: Request) -> np.ndarray:
    """Draw full previews above fast ones, of each image after each of ``PARTS``, as uint8 ``[h, w, 3]``."""
    model, made = pipeline.bundle.model, pipeline.generate(request)
    tokens, patches = np.stack([image.tokens for image in made]), model.default_size.patches
    rows: list[list[np.ndarray]] = [[], []]
    for part in PARTS:
        known = round(part * patches) * model.tokens_per_step
        canvas = pipeline.preview_canvas(len(made))
        canvas.add(tokens[:, :known])
        rows[0].append(pipeline.preview(tokens[:, :known], [image.seed for image in made]))
        rows[1].append(canvas.pixels)
    drawn = [np.stack(row, axis=1) for row in rows]  # [B, parts, H, W, 3]
    return np.concatenate([np.concatenate([np.concatenate(list(one), axis=1) for one in row], axis=1) for row in drawn])


def published_sizes() -> dict[str, float]:
    """Measure CPU seconds of a fast preview after each patch, by a map of random weights."""
    seconds = {}
    for name, side, patch_side in (
        ("B-4x, 256x256", 256, 2),
        ("B-16x, 256x256", 256, 4),
        ("14B-64x, 1024x1024", 1024, 8),
    ):
        grid, patch, bits, pixels = side // 16, patch_side**2, 32, 16
        size = ImageSize(
            height=side,
            width=side,
            grid_height=grid,
            grid_width=grid,
            tokens=grid**2,
            patches=grid**2 // patch,
            patches_down=grid // patch_side,
            patches_across=grid // patch_side,
        )
        generator = np.random.default_rng(0)
        drawn_by = PreviewMap(generator.normal(0, 4, (WINDOW**2 * bits + 1, pixels**2 * 3)).astype(np.float32))
        tokens = generator.choice([-1, 1], (1, size.tokens, bits)).astype(np.int8)
        rounds = []
        for _ in range(9):
            started = time.process_time()
            canvas = PreviewCanvas(drawn_by, 1, bits, size, patch_side)
            for first in range(0, size.tokens, patch):
                canvas.add(tokens[:, first : first + patch])
                canvas.pixels.copy()
            rounds.append(time.process_time() - started)
        seconds[name] = median(rounds)
        print(f"{name}: {1000 * seconds[name]:.1f} ms CPU for {size.patches} fast previews")
    return seconds


def write_picture(shown: Sequence[np.ndarray], path: Path) -> None:
    """Write the pictures of all bundles, one below the other, scaled to one width."""
    width = max(rows.shape[1] for rows in shown)
    scaled = [Image.fromarray(rows) for rows in shown]
    scaled = [
        rows.resize((width, round(rows.height * width / rows.width)), Image.Resampling.NEAREST) for rows in scaled
    ]
    whole = Image.new("RGB", (width, sum(rows.height for rows in scaled)))
    for i, rows in enumerate(scaled):
        whole.paste(rows, (0, sum(above.height for above in scaled[:i])))
    whole.save(path, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="*")
    parser.add_argument("--published", action="store_true", help="time fast previews alone, at published sizes")
    parser.add_argument("--images", type=int, default=50, help="to measure closeness on")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, help="default: the bundle's")
    parser.add_argument("--picture", type=Path, metavar="PNG", help="write what previews of each bundle look like")
    args = parser.parse_args()
    shown: list[np.ndarray] = []
    results: dict[str, Any] = dict(published_sizes()) if args.published else {}
    for folder in args.bundles:
        with Pipeline.open(folder, device="cpu", threads=1) as pipeline:
            several = replace(subjects(pipeline, args.images), steps=args.steps)
            seconds = costs(pipeline, replace(subjects(pipeline, 1), steps=args.steps), args.rounds)
            near = closeness(pipeline, several)
            if args.picture:
                shown.append(picture(pipeline, replace(subjects(pipeline, SHOWN), steps=args.steps)))
        results[folder] = {
            "cpu_seconds": seconds,
            "psnr": {kind: [value if np.isfinite(value) else None for value in near[kind]] for kind in near},
        }
        print(f"{folder}: {1000 * seconds['none']:.1f} ms CPU an image without previews")
        for name, value in seconds.items():
            print(f"  {name:20} {1000 * value:9.1f} ms  {100 * (value / seconds['none'] - 1):+6.1f} %")
        for name, values in near.items():
            print(f"  {name} to the image: {', '.join(f'{value:.1f}' for value in values)} dB")
    if args.picture:
        write_picture(shown, args.picture)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
