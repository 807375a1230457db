"""``bitdance-edge reconstruct``: an image through the tokenizer and back, to see what it keeps."""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from bitdance_edge.commands.common import (
    add_pipeline_arguments,
    add_size_argument,
    image_size,
    open_pipeline,
)
from bitdance_edge.commands.outputs import require_file, require_folder
from bitdance_edge.commands.values import path
from bitdance_edge.runtime import RequestError, load_pixels, save_png
from bitdance_edge.runtime.quality import psnr
from bitdance_edge.runtime.tokens import holds_tokens, read_tokens

EXAMPLE = """examples:
  bitdance-edge reconstruct bundles/digits-4x three.png -o reconstructed.png
  bitdance-edge reconstruct bundles/digits-4x three.npy -o decoded.png
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = "Encode an image and decode it again, or decode tokens (.npy)."
    parser.epilog = EXAMPLE
    add_pipeline_arguments(parser)
    add_size_argument(parser)
    parser.add_argument("image", type=path, help="an image, or tokens of one image as .npy")
    parser.add_argument("-o", "--out", type=path, required=True, metavar="FILE", help=".png file to write")


def run(args: argparse.Namespace) -> None:
    require_file("--out", args.out, ".png")
    require_folder("--trace", args.trace)
    with open_pipeline(args) as pipeline:
        size = image_size(args, pipeline)
        if holds_tokens(args.image):
            save_png(Image.fromarray(pipeline.decode(_one_image(args.image), size=size.pixels)[0]), args.out)
            print(args.out)
            return
        pixels = load_pixels(args.image, size.height, size.width)
        result = pipeline.reconstruct(pixels)[0]
    save_png(Image.fromarray(result), args.out)
    print(f"{args.out}: {size.tokens * pipeline.bundle.model.bits} bits, PSNR {psnr(pixels, result):.1f} dB")


def _one_image(file: Path) -> np.ndarray:
    tokens = read_tokens(file)
    if tokens.ndim == 3 and len(tokens) != 1:
        raise RequestError(f"{file} holds tokens of {len(tokens)} images; give a file with those of one")
    return tokens
