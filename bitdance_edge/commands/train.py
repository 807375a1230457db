"""``bitdance-edge train``: trains a recipe, or scores its checkpoint."""

import argparse
import json
from contextlib import nullcontext
from typing import TYPE_CHECKING

from bitdance_edge.commands.values import number, path, whole
from bitdance_edge.training.errors import TrainingError
from bitdance_edge.training.named_recipes import RECIPES, recipe_named
from bitdance_edge.training.recipes import overridden

if TYPE_CHECKING:
    from bitdance_edge.training.finetune import Start

EXAMPLES = """examples:
  %(prog)s digits-tokenizer --out runs/digits-tokenizer
  %(prog)s digits-4x --tokenizer runs/digits-tokenizer --out runs/digits-4x
  %(prog)s digits-4x --out runs/digits-4x --evaluate
  %(prog)s shapes-16x --tokenizer checkpoints/shapes-tokenizer --out runs/shapes-16x
  %(prog)s digits-4x --data photos --size 64 --tokenizer runs/photos-tokenizer --out runs/photos-4x --set mirror=true
  %(prog)s --init checkpoints/digits-4x --data photos --out runs/photos-4x
  %(prog)s --init checkpoints/digits-4x --data photos --out runs/photos-lora --set lora_rank=8
  %(prog)s --init BitDance_B_4x.pt --variant B-4x --tokenizer ae_d16c32.pt --data photos --out runs/photos-B
  %(prog)s imagenet-B-4x --data imagenet-shards --tokenizer ae_d16c32.pt --out runs/B-4x --precision bf16
several GPUs or machines: accelerate launch -m bitdance_edge train imagenet-B-4x ..."""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = "Train a tokenizer or a generator, or score a trained one."
    parser.epilog = EXAMPLES
    parser.add_argument("recipe", nargs="?", help=f"one of {', '.join(RECIPES)} (default with --init: finetune)")
    parser.add_argument("--out", type=path, required=True, help="folder of the checkpoint")
    parser.add_argument(
        "--tokenizer", type=path, help="a trained tokenizer: of a new generator, or in place of that of --init"
    )
    parser.add_argument(
        "--init", type=path, metavar="CHECKPOINT", help="generator to fine-tune, or OWNER/NAME on the Hub"
    )
    parser.add_argument("--variant", help="what a .pt file of --init is: B-1x to H-1x")
    parser.add_argument(
        "--data",
        type=path,
        help="folder with one sub-folder of images for each class; for text to image, of images with their captions "
        "in .txt files beside them; or WebDataset (.tar) or Parquet shards of either (default: the recipe's data)",
    )
    parser.add_argument(
        "--stream",
        action="store_true",
        help="read images from --data as they are needed (default: where they take more than 1 GiB of memory)",
    )
    parser.add_argument("--resume", action="store_true", help="continue an interrupted run")
    parser.add_argument("--precision", choices=("no", "bf16"), default="no", help="mixed precision (default: none)")
    parser.add_argument(
        "--dtype", choices=("float16", "float32"), default="float16", help="of the written weights (default: float16)"
    )
    recipe = parser.add_argument_group("changes to the recipe")
    recipe.add_argument("--size", type=whole(1), help="side of the square images, in pixels")
    recipe.add_argument("--steps", type=whole(1), help="updates of the weights; the warm-up keeps its share of them")
    recipe.add_argument("--batch-size", type=whole(1), help="images of a step, over all processes")
    recipe.add_argument("--learning-rate", type=number(0, 1000), help="after the warm-up, before it falls")
    recipe.add_argument("--seed", type=whole(0), help="of weights, batches and noise")
    recipe.add_argument("--no-augment", action="store_true", help="use the training images unchanged")
    recipe.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="any setting of the recipe")
    scores = parser.add_argument_group("scores")
    scores.add_argument("--evaluate", action="store_true", help="do not train; score the checkpoint in --out")
    scores.add_argument(
        "--images",
        type=whole(1, 1_000_000),
        help="images per seed (default: the number of training images, or of held-out captions)",
    )
    scores.add_argument("--seeds", type=whole(0), nargs="+", default=[0, 1, 2], help="sampling seeds (default: 0 1 2)")
    scores.add_argument("--sampling-steps", type=whole(1, 1000), help="default: the published setting")
    scores.add_argument("--guidance", type=number(1, 100), help="default: the published setting")


def run(args: argparse.Namespace) -> None:
    """Train or score, and print the report as JSON.

    Raises:
        TrainingError, ModelError: the message says what to change.
        KeyboardInterrupt: after the state of the interrupted training has been saved.
    """
    import torch

    from bitdance_edge.commands.outputs import claimed_outputs
    from bitdance_edge.training.processes import connect
    from bitdance_edge.training.runs import RunOptions, evaluate, train
    from bitdance_edge.training.scoring import Scoring

    if args.recipe is None and args.init is None:
        raise TrainingError(f"give a recipe, one of {', '.join(RECIPES)}, or --init with a checkpoint to fine-tune")
    recipe = overridden(recipe_named(args.recipe or "finetune"), _settings(args))
    options = RunOptions(
        out=args.out,
        data=args.data,
        stream=args.stream,
        tokenizer=args.tokenizer if args.init is None else None,
        start=_start(args),
        precision=args.precision,
        dtype=getattr(torch, args.dtype),
        resume=args.resume,
    )
    scoring = Scoring(
        images=args.images, seeds=tuple(args.seeds), sampling_steps=args.sampling_steps, guidance=args.guidance
    )
    processes = connect()
    first = processes.is_main_process  # the one that writes, and claims
    if args.evaluate and not first:
        return
    with claimed_outputs(args.out) if first else nullcontext():
        report = evaluate(recipe, options, scoring) if args.evaluate else train(recipe, options)
    processes.destroy_process_group()
    if first:
        print(json.dumps(report, indent=2))


def _start(args: argparse.Namespace) -> "Start | None":
    """The checkpoint of --init, downloaded where it is a name on the Hub."""
    if args.init is None:
        return None
    from bitdance_edge.commands.hub_checkpoint import find_checkpoint
    from bitdance_edge.training.finetune import Start

    tokenizer = None if args.tokenizer is None else str(args.tokenizer)
    found = find_checkpoint(str(args.init), args.variant, tokenizer, None)
    return Start(path=found.path, variant=args.variant, tokenizer=found.tokenizer)


def _settings(args: argparse.Namespace) -> list[str]:
    """The changes to the recipe as ``NAME=VALUE``; --set comes last and takes precedence."""
    named = {name: getattr(args, name) for name in ("size", "steps", "batch_size", "learning_rate", "seed")}
    settings = [f"{name}={value}" for name, value in named.items() if value is not None]
    if args.no_augment:
        settings += ["rotation=0", "scaling=0", "shift=0", "mirror=false"]
    return settings + args.set
