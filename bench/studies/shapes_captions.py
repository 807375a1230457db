"""Captions of the shapes model, one a line, for ``bitdance-edge calibrate --prompts``.

    python bench/studies/shapes_captions.py --count 400 -o captions.txt

They are a fixed random choice of the captions that the model was trained on; the held-out ones are kept for evaluation.
"""

import argparse
from pathlib import Path

import numpy as np

from bitdance_edge.training.shapes import all_scenes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("-o", "--out", type=Path, required=True)
    args = parser.parse_args()
    captions = [scene.caption for scene in all_scenes() if not scene.held_out]
    if not 1 <= args.count <= len(captions):
        parser.error(f"--count is {args.count}; allowed are 1 to {len(captions)}")
    chosen = np.random.default_rng(0).permutation(len(captions))[: args.count]
    args.out.write_text("\n".join(captions[row] for row in chosen) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
