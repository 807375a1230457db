"""The flags of ``generate`` that change an image: which, where, how much."""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from bitdance_edge.commands.common import image_size
from bitdance_edge.commands.values import flags, number, path, whole
from bitdance_edge.runtime import Pipeline, RequestError, Size
from bitdance_edge.runtime.fit import FITS, fit_pixels
from bitdance_edge.runtime.mask import load_mask, place_mask
from bitdance_edge.runtime.picture import MOST_BYTES, read_picture
from bitdance_edge.runtime.reading import open_regular
from bitdance_edge.runtime.request import MAX_CANDIDATES
from bitdance_edge.runtime.tokens import holds_tokens, read_tokens

NAMES = ("init", "mask", "strength", "candidates", "no_blend", "fit")


def add_fit_argument(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument(
        "--fit",
        choices=FITS,
        help=f"how {what} of another size is brought to the image's: cover, its centre (default); contain, all of it "
        "with black beside it; stretch",
    )


def add_edit_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--init", type=path, metavar="FILE", help="an image, or tokens (.npy), to change")
    parser.add_argument("--mask", type=path, metavar="FILE", help="white where --init is redrawn, black where kept")
    parser.add_argument(
        "--strength",
        type=number(0, 1),
        metavar="S",
        help="how much is drawn anew, from 0 to 1; below 0.5 the picture stays (default with --mask: 1)",
    )
    parser.add_argument(
        "--candidates",
        type=whole(1, MAX_CANDIDATES),
        metavar="N",
        help="of N drawings keep the one that fits best what --mask keeps after it",
    )
    parser.add_argument(
        "--no-blend", action="store_true", default=None, help="decode all pixels, also those that --mask keeps"
    )


def edit_fields(args: argparse.Namespace, pipeline: Pipeline) -> dict[str, Any]:
    """The fields of a request that these flags say."""
    if args.init is None:
        if given := flags(name for name in NAMES if name != "fit" and getattr(args, name) is not None):
            raise RequestError(f"{given} is about the image of --init: give --init FILE too")
        return {}
    size, fit = image_size(args, pipeline).pixels, args.fit or "cover"
    init, own = _init(args.init, size, fit)
    mask = None if args.mask is None else place_mask(load_mask(args.mask), own, size, fit, str(args.mask))
    return {
        "init": init,
        "mask": mask,
        "strength": args.strength,
        "candidates": args.candidates or 1,
        "blend": not args.no_blend,
    }


def _init(file: Path, size: Size, fit: str) -> tuple[np.ndarray, Size | None]:
    """The image to change, as pixels of this size or as tokens, and the size that it had."""
    if holds_tokens(file):
        return read_tokens(file), None
    with open_regular(file, "image", MOST_BYTES) as content:
        picture = read_picture(content, str(file))
    return fit_pixels(picture, size, fit), Size(width=picture.width, height=picture.height)
