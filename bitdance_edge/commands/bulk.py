"""``bitdance-edge bulk``: very many images as shards, over several devices or machines, and through interruptions."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitdance_edge.commands.common import add_size_argument, add_threads_argument, expand_classes, say
from bitdance_edge.commands.outputs import require_folder
from bitdance_edge.commands.values import flags, number, path, shown, text, whole
from bitdance_edge.runtime.request import MAX_COUNT, MAX_GUIDANCE, MAX_SEED, MAX_STEPS
from bitdance_edge.runtime.values import counted, quoted

if TYPE_CHECKING:
    from bitdance_edge.scale.events import Engine
    from bitdance_edge.scale.plan import Plan

VERIFY = "verify"
SUBJECTS = (  # options that say which images a bundle makes, but for these the fields of Request
    *("classes", "prompts", "count", "seed", "images_at_once", "negative_prompt", "size", "steps", "guidance"),
    *("guidance_schedule", "sampler", "published"),
)
RAY_DEVICES = ("auto", "cpu", "cuda")  # which GPU a worker has is Ray's choice
MOST_WORKERS = 100_000
OF_SHARDS = ("format", "shard_images")
OF_MAKING = ("out", "bundle", "device", "engine", "address", "workers", "threads")
EXAMPLE = """examples:
  bitdance-edge bulk bundles/digits-4x --classes all --count 5000 --seed 1 --out digits
  bitdance-edge bulk bundles/shapes-16x --prompts captions.txt --format parquet --out shapes
  bitdance-edge bulk bundles/B-4x --classes all --count 50 --device cuda:0 --device cuda:1 --out imagenet
  bitdance-edge bulk digits/plan.json --shards 0-99 --out digits
  bitdance-edge bulk /shared/digits/plan.json --engine ray --workers 64 --out /shared/digits
  bitdance-edge bulk verify digits
The same command goes on after an interruption. Another machine makes other --shards of the same plan.json.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Make very many images as shards with fixed contents: the same plan gives the same bytes on one machine or "
        "many, however often it is stopped. 'verify' reads all shards of a folder and compares them with their digests."
    )
    parser.epilog = EXAMPLE
    parser.add_argument(
        "source", metavar="BUNDLE|PLAN|verify", help="bundle folder or .tar, plan (.json), or the word verify"
    )
    parser.add_argument("folder", nargs="?", type=path, metavar="DIR", help="with verify: the folder of a job")
    parser.add_argument("--out", type=path, metavar="DIR", help="folder of the job's shards")
    parser.add_argument(
        "--bundle", metavar="FOLDER", help="with a plan: the bundle, where it is elsewhere than it says"
    )
    add_subjects(parser)
    _add_how(parser)
    parser.add_argument(
        "--discard", action="store_true", help="with verify: have damaged shards made again by the next run"
    )


def add_subjects(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say which images a bundle makes."""
    what = parser.add_argument_group("which images of a bundle")
    what.add_argument("--classes", type=text, help="ids or names: 3,7 or 0-9 or all")
    what.add_argument(
        "--prompts", type=path, metavar="FILE", help="prompts: a text file with one a line, JSON lines, or a folder"
    )
    what.add_argument("--count", type=whole(1, MAX_COUNT), help="images of each class or prompt (default 1)")
    what.add_argument("--seed", type=whole(0, MAX_SEED), help="image i uses seed + i (default 0)")
    what.add_argument("--negative-prompt", type=text, metavar="TEXT", help="what guidance leads away from")
    add_size_argument(parser)
    what.add_argument("--steps", type=whole(1, MAX_STEPS), help="sampling steps of each patch (default: the bundle's)")
    what.add_argument("--guidance", type=number(1, MAX_GUIDANCE), help="1 is off (default: the bundle's)")
    what.add_argument("--guidance-schedule", help="constant, or linear over the patches (default: the bundle's)")
    what.add_argument("--sampler", help="sde or ode (default: the bundle's)")
    what.add_argument(
        "--published", action="store_const", const=True, help="settings as published, where none are given"
    )
    what.add_argument(
        "--images-at-once", type=whole(1, MAX_COUNT), metavar="N", help="that run together, on any device (default 16)"
    )


def given_subjects(args: argparse.Namespace) -> str:
    """The flags of ``add_subjects`` that were given and decide images; a size and prompts serve more."""
    return flags(name for name in SUBJECTS if name not in ("size", "prompts") and getattr(args, name) is not None)


def planned(args: argparse.Namespace, bundle: str, **fields: Any) -> "Plan":
    """Plan the images that the flags of ``add_subjects`` ask for; ``fields`` are further ones of ``make_plan``."""
    from bitdance_edge.scale.plan import make_plan
    from bitdance_edge.scale.prompts import read_prompts

    given = {name: value for name in SUBJECTS if (value := getattr(args, name)) is not None}
    fields |= {name: given.pop(name) for name in ("count", "seed", "images_at_once") if name in given}
    classes, prompts = given.pop("classes", None), given.pop("prompts", None)
    if classes is not None:
        fields["classes"] = classes if classes == "all" else expand_classes(classes)
    if prompts is not None:
        fields["prompts"] = [prompt.text for prompt in read_prompts(prompts)]
    return make_plan(bundle, **fields, settings=given)


def _add_how(parser: argparse.ArgumentParser) -> None:
    shards = parser.add_argument_group("shards")
    shards.add_argument("--format", metavar="F", help="tar (WebDataset, default), parquet or npz")
    shards.add_argument("--shard-images", type=whole(1, MAX_COUNT), metavar="N", help="images of a shard (default 256)")
    how = parser.add_argument_group("how it is made (does not change a byte on devices that round alike)")
    how.add_argument("--shards", metavar="A-B", help="only these, both ends included (default: all)")
    how.add_argument(
        "--device", action="append", help="auto (default), cpu, cpu:bf16, cuda or cuda:N; repeat it for more workers"
    )
    how.add_argument("--engine", help="local (default: one worker process a device) or ray")
    how.add_argument("--address", metavar="A", help="with ray: HOST:PORT, auto (default), or local to start a cluster")
    how.add_argument(
        "--workers", type=whole(1, MOST_WORKERS), metavar="N", help="with ray: workers at once (default 1)"
    )
    add_threads_argument(parser)


def run(args: argparse.Namespace) -> int:
    if args.source == VERIFY:
        return _verify(args)
    from bitdance_edge.scale.bulk import parse_shards, run_job
    from bitdance_edge.scale.errors import ScaleError

    if args.folder is not None or args.discard:
        raise ScaleError("DIR and --discard are for: bitdance-edge bulk verify DIR")
    if args.out is None:
        raise ScaleError("nothing says where to write: give --out DIR")
    require_folder("--out", args.out)
    plan = _plan(args)
    shards = range(plan.shards) if args.shards is None else parse_shards(args.shards, plan)
    outcome = run_job(plan, args.out, shards, _engine(args, plan), say)
    made = f"{counted(outcome.made, 'shard')} of {counted(outcome.images, 'image')}"
    say(f"{made} made, {outcome.kept} were made already")
    print(args.out if outcome.manifest is None else outcome.manifest)
    return 0


def _engine(args: argparse.Namespace, plan: "Plan") -> "Engine":
    from bitdance_edge.scale.errors import ScaleError
    from bitdance_edge.scale.local import LocalEngine
    from bitdance_edge.scale.ray_engine import RayEngine

    devices: list[str] = args.device or ["auto"]
    if args.engine in (None, "local"):
        if args.address or args.workers:
            raise ScaleError("--address and --workers are for --engine ray; here each --device is one more worker")
        return LocalEngine(folder=args.out, bundle=plan.bundle, devices=tuple(devices), threads=args.threads)
    if args.engine != "ray":
        raise ScaleError(f"--engine is {shown(args.engine)}; it must be local or ray")
    if len(devices) > 1 or devices[0] not in RAY_DEVICES:
        raise ScaleError(f"--device is {', '.join(devices)}; with --engine ray it is one of {', '.join(RAY_DEVICES)}")
    return RayEngine(
        folder=args.out,
        bundle=plan.bundle,
        address=args.address or "auto",
        workers=args.workers or 1,
        device=devices[0],
        threads=args.threads or 1,
    )


def _plan(args: argparse.Namespace) -> "Plan":
    from bitdance_edge.scale.errors import ScaleError
    from bitdance_edge.scale.plan_file import read_plan

    if args.source.endswith(".json"):
        if given := flags(name for name in (*SUBJECTS, *OF_SHARDS) if getattr(args, name) is not None):
            raise ScaleError(f"{args.source} is a plan, which decides this already: omit {given}")
        return read_plan(Path(args.source), args.bundle)
    if args.bundle is not None:
        raise ScaleError(f"--bundle is for a plan, and {args.source} is a bundle: omit --bundle")
    given = {"shard_images": args.shard_images, "file_format": args.format}
    return planned(args, args.source, **{name: value for name, value in given.items() if value is not None})


def _verify(args: argparse.Namespace) -> int:
    from bitdance_edge.scale.bulk import parse_shards
    from bitdance_edge.scale.errors import ScaleError
    from bitdance_edge.scale.verify import discard, require_plan, verify

    if args.folder is None:
        raise ScaleError("nothing to verify: give the folder of a job, bitdance-edge bulk verify DIR")
    if given := flags(name for name in (*SUBJECTS, *OF_SHARDS, *OF_MAKING) if getattr(args, name) is not None):
        raise ScaleError(f"verify makes nothing, so {given} would change nothing: omit it")
    plan = require_plan(args.folder)
    found = verify(args.folder, parse_shards(args.shards, plan) if args.shards else None)
    for problem in found.problems:
        print(f"shard {problem.shard}: {problem.reason or 'is not made'}")
    again = f"bitdance-edge bulk {quoted(args.folder / 'plan.json')} --out {quoted(args.folder)}"
    if not found.problems and not found.manifest:
        images = sum(record.images for record in found.whole)
        print(f"whole: {counted(len(found.whole), 'shard')} of {counted(images, 'image')}")
        print(f"content_sha256 {found.content}")
        return 0
    if found.manifest:
        print(found.manifest)
    elif args.discard:
        say(f"{discard(found, args.folder)} sidecars removed")
    elif any(problem.reason for problem in found.problems):
        say("add --discard to have the damaged ones made again")
    say(f"next: {again}")
    return 1
