"""Arguments and conversions that several commands share."""

import argparse
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from bitdance_edge.commands.values import path, shown, whole
from bitdance_edge.installation import as_typed
from bitdance_edge.runtime import Bundle, Pipeline, RequestError, Size, written_whole
from bitdance_edge.runtime.bundle.specs import ImageSize
from bitdance_edge.runtime.pipeline import MAX_THREADS
from bitdance_edge.runtime.request import CLASS_DIGITS

RANGE = re.compile(r"[0-9]+-[0-9]+")
LONGEST_RANGE = 100_000

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".ppm", ".avif")  # taken from a folder


def add_pipeline_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", help="bundle folder, as made by: bitdance-edge export; or its packed .tar")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cpu:bf16, cuda or cuda:N")
    parser.add_argument(
        "--backend",
        help="tensorrt, tensorrt_rtx, onnxruntime-cuda, onnxruntime-cpu or openvino (default: the best that runs here; "
        "openvino for cpu:bf16 alone)",
    )
    parser.add_argument("--trace", type=path, metavar="FOLDER", help="write an operator trace of each stage")
    add_threads_argument(parser)


def add_threads_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--threads",
        type=whole(1, MAX_THREADS),
        help="threads of each graph (default: one a physical core; 1 for a small model)",
    )


def open_pipeline(args: argparse.Namespace, max_batch: int | None = None) -> Pipeline:
    """Open the bundle as ``add_pipeline_arguments`` lets the user ask for, and say on which backend."""
    pipeline = Pipeline.open(
        args.bundle,
        device=args.device,
        backend=args.backend,
        threads=args.threads,
        max_batch=max_batch,
        trace=args.trace,
    )
    say(next(pipeline.choice.lines()))  # bitdance-edge inspect says why not the others
    return pipeline


def add_size_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--size", type=size, metavar="WIDTHxHEIGHT", help="image size in pixels, width first")


def image_size(args: argparse.Namespace, pipeline: Pipeline) -> ImageSize:
    """The size given by ``--size``, or the bundle's default."""
    return pipeline.bundle.model.size(args.size)


def size(text: str) -> Size:
    """Read WIDTHxHEIGHT for argparse."""
    try:
        return Size.parse(text)
    except RequestError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def images_in(folder: Path) -> list[Path]:
    """The images of a folder, by name.

    Raises:
        RequestError: it is no folder, or holds none.
    """
    found = sorted(file for file in folder.glob("*") if file.suffix.lower() in SUFFIXES)
    if not found:
        raise RequestError(f"{folder} holds no image ({', '.join(SUFFIXES)}); name another folder")
    return found


def split_classes(text: str, pipeline: Pipeline) -> list[int | str]:
    """Read ``3,7``, ``0-9`` or ``all`` as class ids and names, which the request then checks."""
    if text == "all":
        return list(range(pipeline.bundle.model.num_classes))
    return expand_classes(text)


def expand_classes(text: str) -> list[int | str]:
    """Read ``3,7`` or ``0-9`` as class ids and names."""
    return [item for part in text.split(",") for item in _expand(part.strip())]


def _expand(part: str) -> Iterator[int | str]:
    first, separator, last = part.partition("-")
    if separator and RANGE.fullmatch(part):
        if max(len(first), len(last)) > CLASS_DIGITS or not 0 <= int(last) - int(first) <= LONGEST_RANGE:
            raise RequestError(f"class range {shown(part)} is empty or too long; write FIRST-LAST")
        yield from range(int(first), int(last) + 1)
    else:
        yield part


def example_subject(bundle: Bundle) -> str:
    """Arguments with which ``generate`` draws something from this bundle, for hints."""
    return "--classes 0" if bundle.text is None else f"--prompt {shlex.quote(bundle.text.example)}"


def save_tokens(tokens: np.ndarray, path: Path) -> None:
    """Write tokens of -1 and +1 as int8 ``[n, h*w, C]`` in a ``.npy`` file.

    Raises:
        RequestError: the name does not end in ``.npy``.
        StorageError: the file cannot be written.
    """
    if path.suffix != ".npy":
        raise RequestError(f"{path} does not end in .npy, the format of tokens")
    with written_whole(path) as file:
        np.save(file, tokens.astype(np.int8), allow_pickle=False)


def say(text: str) -> None:
    """Print a line to standard error: standard output is for results."""
    sys.stderr.write(as_typed(text) + "\n")
