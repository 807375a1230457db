"""``bitdance-edge tokenize``: images to binary tokens."""

import argparse
from pathlib import Path

import numpy as np

from bitdance_edge.commands.common import (
    add_pipeline_arguments,
    add_size_argument,
    image_size,
    open_pipeline,
    save_tokens,
)
from bitdance_edge.runtime import load_pixels

EXAMPLE = """example:
  bitdance-edge tokenize bundles/digits-4x three.png -o three.npy
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Encode images as tokens, int8 [n, h*w, C] of -1 and +1 in generation order. Images are cropped and resized."
    )
    parser.epilog = EXAMPLE
    add_pipeline_arguments(parser)
    add_size_argument(parser)
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="FILE", help=".npy file to write")


def run(args: argparse.Namespace) -> None:
    with open_pipeline(args) as pipeline:
        size = image_size(args, pipeline)
        pixels = [load_pixels(path, size.height, size.width) for path in args.images]
        tokens = np.concatenate([pipeline.tokenize(image[None]) for image in pixels])
    save_tokens(tokens, args.out)
    print(f"{args.out}: {len(tokens)} images of {tokens.shape[1]} tokens of {tokens.shape[2]} bits")
