"""Whether the pictures of a bundle of the shapes model follow captions that it was never trained on.

    python bench/studies/shapes_reading.py bundles/shapes-16x --captions 840 --seed 0

Generates one picture of each held-out caption with the runtime, reads color and shape at the places that the caption
names, and does the same with clean drawings for comparison. The last line is JSON.
"""

import argparse
import json

import numpy as np
from tqdm import tqdm

from bitdance_edge.runtime import Pipeline, Request
from bitdance_edge.training.shape_reader import ShapeReader, reading_scores
from bitdance_edge.training.shapes import all_scenes, render


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--captions", type=int, default=840, help="of the held-out ones (default: all 840)")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="default: the bundle's")
    parser.add_argument("--guidance", type=float, help="default: the bundle's")
    args = parser.parse_args()
    held_out = [scene for scene in all_scenes() if scene.held_out]
    if not 1 <= args.captions <= len(held_out):
        parser.error(f"--captions is {args.captions}; allowed are 1 to {len(held_out)}")
    scenes = [held_out[row] for row in np.random.default_rng(0).permutation(len(held_out))[: args.captions]]
    pictures = []
    with Pipeline.open(args.bundle, max_batch=args.batch) as pipeline:
        for first in tqdm(range(0, len(scenes), args.batch), unit="batch"):
            prompts = [scene.caption for scene in scenes[first : first + args.batch]]
            request = Request(prompts=prompts, seed=args.seed + first, steps=args.steps, guidance=args.guidance)
            pictures += [image.pixels for image in pipeline.generate(request)]
    size = pictures[0].shape[0]
    reader = ShapeReader.fitted(size)
    result = {
        "bundle": args.bundle,
        "seed": args.seed,
        "generated": reading_scores(reader, np.stack(pictures), scenes),
        "drawn": reading_scores(reader, render(scenes, size, args.seed), scenes),
    }
    for name in ("generated", "drawn"):
        shares = ", ".join(f"{key} {result[name][key]:.1%}" for key in ("color", "shape", "both", "all_right"))
        print(f"{name}: {shares} (of {result[name]['things']} things, {result[name]['captions']} captions)")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
