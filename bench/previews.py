"""What previews cost and how near they come: full ones by the decoder, fast ones by the bundle's linear map.

    python bench/previews.py bundles/digits-1x bundles/digits-4x bundles/digits-16x bundles/shapes-16x
    python bench/previews.py BUNDLE --steps 1 --rounds 1 --images 1     # full size

Cost: CPU seconds of an image by itself, against one without previews, in alternating rounds. Nearness: PSNR of what is
drawn after a fourth, a half and three fourths of the patches, and of a preview of all tokens, to the same pixels of the
image. The last line is JSON.
"""

import argparse
import json
import time
from dataclasses import replace
from statistics import median

import numpy as np
from tqdm import tqdm

from bitdance_edge.runtime import Pipeline, Request
from bitdance_edge.runtime.preview import undrawn
from bitdance_edge.training.shapes import all_scenes

SEED = 300
PARTS = (0.25, 0.5, 0.75, 1.0)


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / max(1e-9, np.square(one.astype(np.float64) - other).mean())))


def subjects(pipeline: Pipeline, images: int) -> Request:
    if pipeline.bundle.text is None:
        return Request(classes=[i % pipeline.bundle.model.num_classes for i in range(images)], seed=SEED)
    captions = [scene.caption for scene in all_scenes() if scene.held_out]
    return Request(prompts=[captions[17 * i % len(captions)] for i in range(images)], seed=SEED)


def costs(pipeline: Pipeline, request: Request, rounds: int) -> dict[str, float]:
    """Median CPU seconds of one image with each kind of previews; the plain one is "none"."""
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


def nearness(pipeline: Pipeline, request: Request) -> dict[str, list[float]]:
    """PSNR of each kind for each of ``PARTS``, over what is drawn by then."""
    model, made = pipeline.bundle.model, pipeline.generate(request)
    size, tokens = model.default_size, np.stack([image.tokens for image in made])
    pixels = np.stack([image.to_pil() for image in made])
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="+")
    parser.add_argument("--images", type=int, default=50, help="that nearness is measured on")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, help="default: the bundle's")
    args = parser.parse_args()
    results = {}
    for folder in args.bundles:
        with Pipeline.open(folder, device="cpu", threads=1) as pipeline:
            several = replace(subjects(pipeline, args.images), steps=args.steps)
            seconds = costs(pipeline, replace(subjects(pipeline, 1), steps=args.steps), args.rounds)
            near = nearness(pipeline, several)
        results[folder] = {"cpu_seconds": seconds, "psnr": near}
        print(f"{folder}: {1000 * seconds['none']:.1f} ms CPU an image without previews")
        for name, value in seconds.items():
            print(f"  {name:20} {1000 * value:9.1f} ms  {100 * (value / seconds['none'] - 1):+6.1f} %")
        for name, values in near.items():
            print(f"  {name} to the image: {', '.join(f'{value:.1f}' for value in values)} dB")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
