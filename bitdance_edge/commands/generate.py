"""``bitdance-edge generate``: images of classes or prompts, as single PNGs and as one labelled grid."""

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import numpy as np
from PIL import Image

from bitdance_edge.commands.common import (
    add_pipeline_arguments,
    add_size_argument,
    image_size,
    open_pipeline,
    say,
    split_classes,
)
from bitdance_edge.commands.edit import NAMES as EDIT_NAMES
from bitdance_edge.commands.edit import add_edit_arguments, add_fit_argument, edit_fields
from bitdance_edge.commands.grid import require_drawable
from bitdance_edge.commands.outputs import (
    DEFAULT_FOLDER,
    ImageOutputs,
    claimed_outputs,
    is_image_file,
    require_file,
    require_folder,
    require_images,
)
from bitdance_edge.commands.values import number, path, prompt_file, text, whole, whole_or
from bitdance_edge.runtime import (
    BitDanceError,
    Event,
    ImageDone,
    PatchDone,
    Pipeline,
    Preview,
    Request,
    RequestError,
    load_pixels,
    read_settings,
    request_from_settings,
    save_png,
)
from bitdance_edge.runtime.bundle.stage_names import STAGE_WIDTH
from bitdance_edge.runtime.request import MAX_COUNT, MAX_GUIDANCE, MAX_SEED, MAX_STEPS, MAX_WINDOW
from bitdance_edge.runtime.tokens import holds_tokens, read_tokens

if TYPE_CHECKING:
    from tqdm import tqdm

SLOW = 2.0  # seconds from which what a build would bring is said
EXAMPLE = """examples:
  bitdance-edge generate bundles/digits-4x --classes all --count 8 --seed 1 --grid digits.png
  bitdance-edge generate bundles/shapes-16x --prompt "a red circle above a blue square" --count 4
  bitdance-edge generate bundles/digits-4x --classes 3 --seed 1 --out three.png
  bitdance-edge generate bundles/digits-4x --like three.png --out again
  bitdance-edge generate bundles/digits-4x --classes 3 --prefix three.png --prefix-patches 8 --out completed
  bitdance-edge generate bundles/digits-4x --classes 3 --init three.png --mask mask.png --candidates 8
  bitdance-edge generate bundles/digits-4x --classes 7 --init three.png --strength 0.7 --count 4
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = "Generate images. Without --out and --grid they go to the folder 'images'."
    parser.epilog = EXAMPLE
    add_pipeline_arguments(parser)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--classes", type=text, help="ids or names: 3,7 or 0-9 or all")
    what.add_argument(
        "--prompt", type=text, action="append", metavar="TEXT", help="what to draw; can be given several times"
    )
    what.add_argument(
        "--prompts-file",
        type=prompt_file,
        metavar="FILE",
        help="a text file with one prompt a line, - for standard input",
    )
    what.add_argument("--like", type=path, metavar="PNG", help="reproduce the image of this PNG")
    parser.add_argument(
        "--count", type=whole(1, MAX_COUNT), default=1, help="images of each class or prompt (default 1)"
    )
    _add_settings(parser)
    _add_outputs(parser)
    parser.add_argument("--prefix", type=path, metavar="FILE", help="an image, or tokens (.npy), to complete")
    parser.add_argument("--prefix-patches", type=whole(0), metavar="K", help="patches kept of --prefix (default: half)")
    add_edit_arguments(parser)
    add_fit_argument(parser, "an image of --init or --prefix")
    parser.add_argument(
        "--batch-invariant", action="store_true", help="one image at a time: the same bits in any batch"
    )
    parser.add_argument(
        "--max-batch", type=whole(1, MAX_COUNT), help="images that run together (default 16, or what fits)"
    )


def _add_settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--negative-prompt", type=text, metavar="TEXT", help="what guidance leads away from")
    parser.add_argument(
        "--seed", type=whole(0, MAX_SEED), help="image i uses seed + i (default: drawn at random, and printed)"
    )
    parser.add_argument(
        "--steps", type=whole(1, MAX_STEPS), help="sampling steps of each patch (default: the bundle's)"
    )
    parser.add_argument("--guidance", type=number(1, MAX_GUIDANCE), help="1 is off (default: the bundle's)")
    parser.add_argument("--guidance-schedule", help="constant, or linear over the patches (default: the bundle's)")
    parser.add_argument("--sampler", help="sde, the reference's, or ode, without noise (default: the bundle's)")
    parser.add_argument(
        "--window",
        type=whole_or("auto", 1, MAX_WINDOW),
        metavar="W",
        help="head evaluations in one pass: 1 (default), one after the other; auto, what is faster here",
    )
    parser.add_argument(
        "--published",
        action="store_true",
        help="settings that are not given are those the checkpoint was published with",
    )
    add_size_argument(parser)


def _add_outputs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out",
        type=path,
        metavar="FOLDER",
        help="write one PNG per image, with its settings inside; a name in .png is the file of a single image",
    )
    parser.add_argument("--grid", type=path, metavar="FILE", help="write one labelled PNG of all images")
    parser.add_argument(
        "--tokens", type=path, metavar="FILE", help="write tokens [n, h*w, C] as .npy and decode nothing"
    )
    parser.add_argument("--previews", type=path, metavar="FOLDER", help="write what is decoded so far into FOLDER")
    parser.add_argument(
        "--preview-every", type=whole(0), metavar="K", help="patches between previews (default: a quarter of the image)"
    )
    parser.add_argument("--preview-kind", help="full (default), by the decoder, or fast, a linear approximation of it")
    parser.add_argument(
        "--preview-share",
        type=number(0, 1),
        metavar="S",
        help="skip full previews that exceed this share of the time, such as 0.1",
    )


def run(args: argparse.Namespace) -> None:
    started = time.perf_counter()
    _require_outputs(args)
    with open_pipeline(args, max_batch=args.max_batch) as pipeline:
        request = _request(args, pipeline)
        _require_single(args.out, request)
        if args.grid:
            require_drawable(len(request.subjects), request.count, pipeline.bundle.model.size(request.size))
        events = pipeline.stream(request)
        say(f"opened {args.bundle} in {time.perf_counter() - started:.2f} s")
        generating = time.perf_counter()
        outputs = _outputs(args, pipeline)
        with claimed_outputs(outputs.folder, args.grid, args.tokens, args.previews):
            seeds = _write_images(_shown(events, args.previews, _images(request)), outputs, request)
        seconds = time.perf_counter() - generating
        if args.trace:
            for stage, spent in pipeline.times().items():
                total = 1000 * spent.seconds
                each = f"{spent.launches:7} launches {total / spent.launches:9.3f} ms each"
                say(f"{stage:{STAGE_WIDTH}} {each} {total:10.1f} ms")
        if pipeline.choice.advice and time.perf_counter() - started > SLOW:
            say(pipeline.choice.advice)
    each = f" {seconds / len(seeds):.2f} s each," if len(seeds) > 1 else ""
    say(f"{len(seeds)} image{'s' if each else ''} in {seconds:.2f} s,{each} seed {seeds[0]}")


def _write_images(events: Iterator[Event], outputs: ImageOutputs, request: Request) -> list[int]:
    """Write each image when it is done, and what is made of all; returns their seeds.

    Raises:
        KeyboardInterrupt, BitDanceError: it was interrupted or failed; what was finished by then is written.
    """
    seeds = []
    try:
        for event in events:
            if isinstance(event, ImageDone):
                outputs.add(event.image)
                seeds.append(event.image.seed)
    except (KeyboardInterrupt, BitDanceError) as error:
        written = f"{outputs.done} of {_images(request)} images are written"
        outputs.finish()
        if isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt(f"{error}; {written}" if str(error) else written) from None
        say(written)
        raise
    outputs.finish()
    return seeds


def _images(request: Request) -> int:
    return request.count * len(request.subjects)


def _require_single(out: Path | None, request: Request) -> None:
    """Refuse the name of one file for several images."""
    if out is not None and is_image_file(out) and _images(request) != 1:
        raise RequestError(f"--out {out} is one file, and {_images(request)} images are asked for; give a folder")


def _outputs(args: argparse.Namespace, pipeline: Pipeline) -> ImageOutputs:
    folder = args.out or (None if args.grid or args.tokens else DEFAULT_FOLDER)
    return ImageOutputs(folder, args.grid, args.tokens, pipeline.bundle.model.class_names)


def _require_outputs(args: argparse.Namespace) -> None:
    """Refuse outputs that cannot be written, and flags that would have no effect, before the work starts."""
    if args.tokens and (args.grid or args.out):
        raise RequestError(
            "--tokens decodes nothing, so there is nothing for --grid or --out: omit --tokens, or the others"
        )
    how = ("preview_every", "preview_kind", "preview_share")
    if (given := _given(args, how)) and not args.previews:
        raise RequestError(f"{', '.join(given)} needs --previews: give --previews FOLDER too")
    settings = (
        "seed",
        "steps",
        "guidance",
        "guidance_schedule",
        "sampler",
        "window",
        "size",
        "prefix",
        "prefix_patches",
    )
    given = _given(args, (*settings, "negative_prompt", *EDIT_NAMES))
    given += [f"--{name}" for name, value in (("count", args.count != 1), ("published", args.published)) if value]
    if args.like and given:
        raise RequestError(f"--like takes all settings from the PNG: omit {', '.join(given)}")
    require_file("--grid", args.grid, ".png")
    require_file("--tokens", args.tokens, ".npy")
    require_images("--out", args.out)
    if not (args.out or args.grid or args.tokens):
        require_folder("--out", DEFAULT_FOLDER)
    require_folder("--previews", args.previews)
    require_folder("--trace", args.trace)


def _given(args: argparse.Namespace, names: Sequence[str]) -> list[str]:
    return [f"--{name.replace('_', '-')}" for name in names if getattr(args, name) is not None]


def _request(args: argparse.Namespace, pipeline: Pipeline) -> Request:
    every = args.preview_every or 0
    if args.previews and args.preview_every is None and args.preview_share is None:
        every = max(1, image_size(args, pipeline).patches // 4)
    output = {
        "preview_every": every,
        "preview_kind": args.preview_kind or "full",
        "preview_share": args.preview_share,
        "output": "tokens" if args.tokens else "image",
    }
    if args.like:
        return replace(_like(args.like, pipeline), **output)
    return Request(
        classes=split_classes(args.classes, pipeline) if args.classes else (),
        prompts=args.prompt or args.prompts_file or (),
        negative_prompt=args.negative_prompt,
        count=args.count,
        seed=args.seed,
        steps=args.steps,
        guidance=args.guidance,
        guidance_schedule=args.guidance_schedule,
        sampler=args.sampler,
        published=args.published,
        size=args.size,
        prefix=_prefix(args, pipeline),
        **edit_fields(args, pipeline),
        batch_invariant=args.batch_invariant,
        window=1 if args.window is None else args.window,
        **output,
    )


def _like(png: Path, pipeline: Pipeline) -> Request:
    settings = read_settings(png)
    if settings.get("bundle_sha256") != pipeline.bundle.digest:
        raise RequestError(
            f"{png} was made by another bundle ({settings.get('bundle')}): open that one, or pass its settings"
        )
    pixels = None
    if "mask" in settings and isinstance(settings.get("size"), str):
        size = pipeline.bundle.model.size(settings["size"])
        pixels = load_pixels(png, size.height, size.width)
    return request_from_settings(settings, pixels)


def _prefix(args: argparse.Namespace, pipeline: Pipeline) -> np.ndarray | None:
    if args.prefix is None:
        if args.prefix_patches is not None:
            raise RequestError("--prefix-patches says how much of --prefix to keep: give --prefix too")
        return None
    size = image_size(args, pipeline)
    patches = size.patches // 2 if args.prefix_patches is None else args.prefix_patches
    if not 0 <= patches <= size.patches:
        raise RequestError(f"--prefix-patches is {patches}; it must be from 0 to {size.patches}")
    kept = patches * pipeline.bundle.model.tokens_per_step
    if not holds_tokens(args.prefix):
        return pipeline.tokenize(load_pixels(args.prefix, size.height, size.width, args.fit or "cover"))[:, :kept]
    tokens = read_tokens(args.prefix)
    if args.prefix_patches is not None and tokens.shape[-2] < kept:
        raise RequestError(
            f"{args.prefix} has {tokens.shape[-2]} tokens, and --prefix-patches {patches} keeps {kept}: give fewer"
        )
    return tokens[..., :kept, :]


def _shown(events: Iterator[Event], previews: Path, images: int) -> Iterator[Event]:
    """Pass the events on, show one progress bar over the patches of all images, and write previews."""
    with _progress_bar() as progress:
        for event in events:
            if isinstance(event, PatchDone) and progress is not None:
                progress.total = images * event.patches
                progress.set_description(f"image {event.first_image + 1} of {images}", refresh=False)
                progress.update(len(event.tokens))
            elif isinstance(event, Preview):
                for i, pixels in enumerate(event.pixels):
                    name = f"{event.first_image + i:04d}-patch{event.patch:03d}.png"
                    save_png(Image.fromarray(pixels), previews / name)
            yield event


def _progress_bar() -> AbstractContextManager["tqdm[NoReturn] | None"]:
    """A bar on a terminal; elsewhere None, and its library is not imported: that takes as long as opening a bundle."""
    if not sys.stderr.isatty():
        return nullcontext()
    from tqdm import tqdm

    return tqdm(unit="patch", leave=False)
