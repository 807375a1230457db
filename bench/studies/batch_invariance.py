"""How often an image of a batch differs from the same image made alone, and what ``batch_invariant=True`` costs.

    python bench/studies/batch_invariance.py bundles/digits-4x --images 160 --batch 16

Generates the same images in batches and one by one, in turn, and compares every bit. The last line is JSON.
"""

import argparse
import json
import statistics
import time

import numpy as np

from bitdance_edge.runtime import Pipeline, Request


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--images", type=int, default=160)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3, help="alternating timed runs of each")
    args = parser.parse_args()
    with Pipeline.open(args.bundle, max_batch=args.batch) as pipeline:
        classes = [i % pipeline.bundle.model.num_classes for i in range(args.images)]
        runs = {False: [], True: []}
        for _ in range(args.rounds):
            for invariant, seconds in runs.items():
                started = time.perf_counter()
                images = pipeline.generate(Request(classes=classes, seed=0, output="tokens", batch_invariant=invariant))
                seconds.append((time.perf_counter() - started, np.stack([image.tokens for image in images])))
    batched, alone = runs[False][0][1], runs[True][0][1]
    different = (batched != alone).reshape(args.images, -1)
    ratios = [single[0] / whole[0] for single, whole in zip(runs[True], runs[False], strict=True)]
    result = {
        "bundle": args.bundle,
        "images": args.images,
        "batch": args.batch,
        "images_different": int(different.any(axis=1).sum()),
        "bits": different.size,
        "bits_different": int(different.sum()),
        "repeats_identical": all(np.array_equal(run[1], alone) for run in runs[True])
        and all(np.array_equal(run[1], batched) for run in runs[False]),
        "cost_of_batch_invariant": statistics.median(ratios),
    }
    print(
        f"{result['images_different']} of {args.images} images and {result['bits_different']} of {different.size} bits"
    )
    print(f"differ between batches of {args.batch} and single runs; single runs take {min(ratios):.2f} to")
    print(f"{max(ratios):.2f} times as long (median {result['cost_of_batch_invariant']:.2f})")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
