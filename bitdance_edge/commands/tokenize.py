"""``bitdance-edge tokenize``: images to binary tokens."""

import argparse

import numpy as np

from bitdance_edge.commands.common import (
    add_pipeline_arguments,
    add_size_argument,
    image_size,
    open_pipeline,
    save_tokens,
)
from bitdance_edge.commands.edit import add_fit_argument
from bitdance_edge.commands.outputs import claimed_outputs, require_file, require_folder
from bitdance_edge.commands.values import path
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
    add_fit_argument(parser, "an image")
    parser.add_argument("images", nargs="+", type=path, metavar="IMAGE", help="image files")
    parser.add_argument("-o", "--out", type=path, required=True, metavar="FILE", help=".npy file to write")


def run(args: argparse.Namespace) -> None:
    require_file("--out", args.out, ".npy")
    require_folder("--trace", args.trace)
    with open_pipeline(args) as pipeline, claimed_outputs(args.out):
        size, fit = image_size(args, pipeline), args.fit or "cover"
        tokens = [pipeline.tokenize(load_pixels(image, size.height, size.width, fit)) for image in args.images]
        save_tokens(np.concatenate(tokens), args.out)
    print(f"{args.out}: {len(tokens)} images of {size.tokens} tokens of {pipeline.bundle.model.bits} bits")
