"""``bitdance-edge reconstruct``: images through the tokenizer and back, and what that keeps of them."""

import argparse
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from bitdance_edge.commands.common import (
    add_pipeline_arguments,
    add_size_argument,
    image_size,
    images_in,
    open_pipeline,
)
from bitdance_edge.commands.edit import add_fit_argument
from bitdance_edge.commands.outputs import claimed_outputs, require_file, require_folder
from bitdance_edge.commands.values import path
from bitdance_edge.runtime import Pipeline, RequestError, load_pixels, save_png, written_whole
from bitdance_edge.runtime.bundle.specs import ImageSize
from bitdance_edge.runtime.quality import psnr
from bitdance_edge.runtime.tokens import holds_tokens, read_tokens

MOST_PSNR = 100.0  # dB that an unchanged picture counts as, so that means and JSON stay finite
EXAMPLE = """examples:
  bitdance-edge reconstruct bundles/digits-4x three.png -o reconstructed.png
  bitdance-edge reconstruct bundles/d16c32 photos --report photos.json --fit contain
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Encode an image and decode it again, or all images of a folder; --report adds up PSNR and SSIM."
    )
    parser.epilog = EXAMPLE
    add_pipeline_arguments(parser)
    add_size_argument(parser)
    add_fit_argument(parser, "an image")
    parser.add_argument("image", type=path, help="an image, a folder of images, or tokens of one image as .npy")
    parser.add_argument("-o", "--out", type=path, metavar="PATH", help=".png file to write, or folder for a folder")
    parser.add_argument(
        "--report", type=path, metavar="FILE", help=".json file to write: PSNR and SSIM of each image, and their means"
    )


def run(args: argparse.Namespace) -> None:
    folder = args.image.is_dir()
    _require_outputs(args, folder)
    files = images_in(args.image) if folder else [args.image]
    if folder and args.out:
        _require_distinct(files, args.out)
    with open_pipeline(args) as pipeline, claimed_outputs(args.out, args.report):
        size = image_size(args, pipeline)
        if not folder and holds_tokens(args.image):
            pixels = pipeline.decode(_one_image(args.image), size=size.pixels)[0]
            save_png(Image.fromarray(pixels), args.out)
            print(args.out)
            return
        # disable=None: no progress line where standard error is not a terminal
        made = list(_reconstructed(tqdm(files, unit="image", leave=False, disable=None), args, pipeline, size))
        bits = size.tokens * pipeline.bundle.model.bits
        means = {name: float(np.mean([each[name] for each in made])) for name in ("psnr_db", "ssim") if name in made[0]}
        if args.report:
            with written_whole(args.report) as file:
                report = {"bundle": str(args.bundle), "images": len(made), "bits_an_image": bits, **means}
                file.write((json.dumps({**report, "each": made}, indent=1) + "\n").encode())
    ssim = f", SSIM {means['ssim']:.3f}" if "ssim" in means else ""
    what = f"{len(made)} images of {bits} bits" if folder else f"{args.out or args.image}: {bits} bits"
    print(f"{what}, PSNR {means['psnr_db']:.2f} dB{ssim}")


def _reconstructed(
    files: Iterable[Path], args: argparse.Namespace, pipeline: Pipeline, size: ImageSize
) -> Iterator[dict[str, Any]]:
    """Reconstruct each image and write it where that was asked for; yields its name and figures."""
    for file in files:
        pixels = load_pixels(file, size.height, size.width, args.fit or "cover")
        result = pipeline.reconstruct(pixels)[0]
        if args.out:
            name = _reconstruction(file, args.out) if args.image.is_dir() else args.out
            save_png(Image.fromarray(result), name)
        yield {
            "image": file.name,
            "psnr_db": min(psnr(pixels, result), MOST_PSNR),
            **(_ssim(pixels, result) if args.report else {}),
        }


def _reconstruction(file: Path, folder: Path) -> Path:
    return folder / f"{file.stem}.png"


def _require_distinct(files: Iterable[Path], folder: Path) -> None:
    """Check that each image of a folder has a reconstruction of its own, which takes the place of none of them."""
    made: dict[Path, Path] = {}
    for file in files:
        name = _reconstruction(file, folder)
        if name in made:
            raise RequestError(f"{made[name]} and {file} would both become {name}; rename one of them")
        made[name] = file
        if name.exists() and name.samefile(file):
            raise RequestError(f"{file} would be replaced by its reconstruction; give another folder as --out")


def _ssim(pixels: np.ndarray, result: np.ndarray) -> dict[str, float]:
    from bitdance_edge.evaluation.similarity import ssim

    return {"ssim": ssim(pixels, result)}


def _require_outputs(args: argparse.Namespace, folder: bool) -> None:
    """Check what can be written, before the work starts."""
    if not args.out and not args.report:
        raise RequestError("nothing would be written: give -o PATH for the pictures, or --report FILE for the figures")
    if args.report and not folder and holds_tokens(args.image):
        raise RequestError(f"--report compares pictures, and {args.image} holds tokens: omit --report")
    if folder:
        require_folder("--out", args.out)
    else:
        require_file("--out", args.out, ".png")
    require_file("--report", args.report, ".json")
    require_folder("--trace", args.trace)


def _one_image(file: Path) -> np.ndarray:
    tokens = read_tokens(file)
    if tokens.ndim == 3 and len(tokens) != 1:
        raise RequestError(f"{file} holds tokens of {len(tokens)} images; decode them with: bitdance-edge decode")
    return tokens
