"""``bitdance-edge decode``: tokens to images."""

import argparse

from PIL import Image

from bitdance_edge.commands.common import add_pipeline_arguments, add_size_argument, image_size, open_pipeline
from bitdance_edge.commands.outputs import claimed_outputs, is_image_file, require_folder, require_images
from bitdance_edge.commands.values import path
from bitdance_edge.runtime import RequestError, save_png
from bitdance_edge.runtime.tokens import read_tokens

EXAMPLE = """example:
  bitdance-edge tokenize bundles/digits-4x three.png seven.png -o digits.npy
  bitdance-edge decode bundles/digits-4x digits.npy -o decoded
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = "Decode tokens, as tokenize and generate --tokens write them, to one PNG an image."
    parser.epilog = EXAMPLE
    add_pipeline_arguments(parser)
    add_size_argument(parser)
    parser.add_argument("tokens", type=path, metavar="FILE", help="tokens [n, h*w, C] or [h*w, C] as .npy")
    parser.add_argument(
        "-o",
        "--out",
        type=path,
        required=True,
        metavar="FOLDER",
        help="folder for 0000.png, ...; a name in .png is the file of a single image",
    )


def run(args: argparse.Namespace) -> None:
    one_file = is_image_file(args.out)
    require_images("--out", args.out)
    require_folder("--trace", args.trace)
    tokens = read_tokens(args.tokens)
    tokens = tokens[None] if tokens.ndim == 2 else tokens
    if one_file and len(tokens) != 1:
        raise RequestError(f"--out {args.out} is one file, and {args.tokens} holds {len(tokens)} images; give a folder")
    with open_pipeline(args) as pipeline, claimed_outputs(args.out):
        size = image_size(args, pipeline)
        for number, one in enumerate(tokens):
            file = args.out if one_file else args.out / f"{number:04d}.png"
            save_png(Image.fromarray(pipeline.decode(one, size=size.pixels)[0]), file)
            print(file, flush=True)
