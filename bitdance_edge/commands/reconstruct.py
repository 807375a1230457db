"""``bitdance-edge reconstruct``: what the tokenizer keeps of an image."""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from bitdance_edge.commands.common import add_pipeline_arguments, load_tokens, open_pipeline
from bitdance_edge.runtime import load_pixels, save_png

EXAMPLE = """examples:
  bitdance-edge reconstruct bundles/digits-4x three.png -o reconstructed.png
  bitdance-edge reconstruct bundles/digits-4x three.npy -o decoded.png
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = "An image through the tokenizer and back, or tokens (.npy) to an image."
    parser.epilog = EXAMPLE
    add_pipeline_arguments(parser)
    parser.add_argument("image", type=Path, help="an image, or tokens of one image as .npy")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="FILE", help=".png file to write")


def run(args: argparse.Namespace) -> None:
    with open_pipeline(args) as pipeline:
        model = pipeline.bundle.model
        if args.image.suffix == ".npy":
            save_png(Image.fromarray(pipeline.decode(load_tokens(args.image))[0]), args.out)
            print(args.out)
            return
        pixels = load_pixels(args.image, model.image_height, model.image_width)
        result = pipeline.reconstruct(pixels[None])[0]
    save_png(Image.fromarray(result), args.out)
    print(f"{args.out}: {model.tokens * model.bits} bits, PSNR {_psnr(pixels, result):.1f} dB")


def _psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio of two uint8 images in dB; infinite where they are equal."""
    error = np.mean((a.astype(np.float64) - b) ** 2)
    return float(10 * np.log10(255**2 / error)) if error else float("inf")
