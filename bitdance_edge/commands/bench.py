"""``bitdance-edge bench``: a bundle against PyTorch on the same weights and noise, side by side."""

import argparse
import hashlib
import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitdance_edge.commands.common import say
from bitdance_edge.commands.values import path, percentage, text, whole, whole_list
from bitdance_edge.runtime.pipeline import MAX_THREADS
from bitdance_edge.runtime.request import MAX_COUNT, MAX_STEPS

if TYPE_CHECKING:
    from bitdance_edge.bench.runs import BenchOptions

EXAMPLE = """examples:
  bitdance-edge bench bundles/digits-4x --against torch
  bitdance-edge bench bundles/digits-4x bundles/digits-4x-int8 --against torch,torch-compile --threads 1,2
  bitdance-edge bench bundles/digits-4x --against torch,onnxruntime,openvino --batch 1,4,16 --threads 1,2
  bitdance-edge bench bundles/B-4x --against torch --checkpoint models/B-4x --steps 10 --patches 4 -o runs/B-4x
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Make the same images with bundles, with PyTorch and with other runtimes, in turn, and report what each costs, "
        "in total and by stage, and how far a bundle's stages are from what this machine can do. The tables go to "
        "standard error. No speed of a bundle is shown where tokens differ by more than rounding. Every finished run "
        "is kept in the output folder: the same command continues a comparison."
    )
    parser.epilog = EXAMPLE
    parser.add_argument("bundles", nargs="+", type=path, metavar="BUNDLE", help="bundle folders, all of one model")
    parser.add_argument(
        "--against",
        default="torch",
        metavar="KINDS",
        help="torch (default), torch-compile, onnxruntime (the plain graphs), openvino, openvino-bf16; comma-separated",
    )
    parser.add_argument(
        "--checkpoint", type=path, metavar="FOLDER", help="what the bundle was exported from (default: by its name)"
    )
    parser.add_argument("--rounds", type=whole(1), default=3, help="runs of each that count (default 3)")
    parser.add_argument(
        "--threads",
        type=whole_list(1, MAX_THREADS),
        default=[1],
        metavar="N,...",
        help="1 (default), 2, or 1,2: in turn",
    )
    parser.add_argument(
        "--batch",
        type=whole_list(1, MAX_COUNT),
        default=[1],
        metavar="B,...",
        help="images at once: 1 (default), or 1,4,16: one comparison each, in folders of their own",
    )
    parser.add_argument(
        "--steps", type=whole(1, MAX_STEPS), help="sampling steps of each patch (default: the bundle's)"
    )
    parser.add_argument("--patches", type=whole(1), help="only the first patches of each image (default: all)")
    parser.add_argument("--prompt", type=text, help="what to draw, for text-to-image bundles")
    parser.add_argument("--seed", type=whole(0), default=1, help="image i uses seed + i (default 1)")
    parser.add_argument(
        "--max-bit-flips",
        type=percentage,
        metavar="PERCENT",
        help="bits that may differ from PyTorch's by more than rounding (default: 0%% in float32, otherwise 2%% under "
        "teacher forcing)",
    )
    parser.add_argument(
        "-o", "--out", type=path, metavar="FOLDER", help="for runs, report and plot (default: in runs/)"
    )
    parser.add_argument("--json", action="store_true", help="print the whole report to standard output")
    parser.add_argument("--force", action="store_true", help="delete the runs in the folder and start over")


def run(args: argparse.Namespace) -> None:
    from bitdance_edge.bench.errors import BenchError

    if sys.platform != "linux":
        raise BenchError(
            f"bench reads CPU time and memory from Linux's /proc, and this is {sys.platform}: run it there"
        )
    from bitdance_edge.bench.batches import compare_batches
    from bitdance_edge.runtime.bundle.files import claimed_output

    options = _options(args)
    with claimed_output(options.folder, lock_in=options.folder):
        report = compare_batches(options, args.batch, _command(), say)
    if args.json:
        print(json.dumps(report))


def _options(args: argparse.Namespace) -> "BenchOptions":
    """Check what the command line asks for before anything runs; the first batch stands for all."""
    from bitdance_edge.bench.contenders import contenders, find_checkpoint, parse_against, require_one_model
    from bitdance_edge.bench.runs import BenchOptions
    from bitdance_edge.bench.work import Work
    from bitdance_edge.runtime.bundle.manifest import Bundle

    kinds = parse_against(args.against)
    bundles = [Bundle.open(folder) for folder in args.bundles]
    require_one_model(bundles)
    work = Work(images=args.batch[0], steps=args.steps, patches=args.patches, seed=args.seed, prompt=args.prompt)
    for bundle in bundles:
        work.settings(bundle)
        work.drawn(bundle)
    checkpoint = find_checkpoint(bundles[0], args.checkpoint)
    return BenchOptions(
        bundles=bundles,
        contenders=contenders(bundles, kinds, checkpoint),
        checkpoint=checkpoint,
        work=work,
        rounds=args.rounds,
        threads=args.threads,
        folder=args.out or _default_folder(bundles, kinds, work, args.batch),
        max_bit_flips=args.max_bit_flips,
        force=args.force,
    )


def _default_folder(bundles: list[Any], kinds: list[str], work: Any, batches: list[int]) -> Path:
    """Name a folder after the comparison, so that the same command continues it."""
    asked = json.dumps([[bundle.digest for bundle in bundles], kinds, work.to_json(), batches])
    return Path("runs") / f"bench-{bundles[0].name}-{hashlib.sha256(asked.encode()).hexdigest()[:8]}"


def _command() -> str:
    return shlex.join(["bitdance-edge", "bench", *sys.argv[2:]]) if sys.argv[1:2] == ["bench"] else shlex.join(sys.argv)
