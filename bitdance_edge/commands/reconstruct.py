"""``bitdance-edge reconstruct``: an image through the tokenizer and back, to see what it keeps."""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from bitdance_edge.commands.common import (
    add_pipeline_arguments,
    add_size_argument,
    image_size,
    load_tokens,
    open_pipeline,
)
from bitdance_edge.runtime import load_pixels, save_png

EXAMPLE = """examples:
  bitdance-edge reconstruct bundles/digits-4x three.png -o reconstructed.png
  bitdance-edge reconstruct bundles/digits-4x three.npy -o decoded.png
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = "Encode an image and decode it again, or decode tokens (.npy)."
    parser.epilog = EXAMPLE
    add_pipeline_arguments(parser)
    add_size_argument(parser)
    parser.add_argument("image", type=Path, help="an image, or tokens of one image as .npy")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="FILE", help=".png file to write")


def run(args: argparse.Namespace) -> None:
    with open_pipeline(args) as pipeline:
        size = image_size(args, pipeline)
        if args.image.suffix == ".npy":
            pixels = pipeline.decode(load_tokens(args.image), size=size.pixels)
            save_png(Image.fromarray(pixels[0]), args.out)
            print(args.out)
            return
        pixels = load_pixels(args.image, size.height, size.width)
        result = pipeline.reconstruct(pixels[None])[0]
    save_png(Image.fromarray(result), args.out)
    print(f"{args.out}: {size.tokens * pipeline.bundle.model.bits} bits, PSNR {_psnr(pixels, result):.1f} dB")


def _psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio of two uint8 images in dB; infinite where they are equal."""
    error = np.mean((a.astype(np.float64) - b) ** 2)
    return float(10 * np.log10(255**2 / error)) if error else float("inf")
