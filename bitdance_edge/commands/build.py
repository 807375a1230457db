"""``bitdance-edge build``: what one device wants of a bundle, graphs or engines, beside the bundle's own graphs."""

import argparse
import threading
import time
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from bitdance_edge.commands.common import say
from bitdance_edge.commands.values import path, whole
from bitdance_edge.runtime.bundle.stage_names import STAGE_WIDTH
from bitdance_edge.runtime.values import quoted

if TYPE_CHECKING:
    from bitdance_edge.engines.progress import BuildWatch
    from bitdance_edge.engines.targets.interface import Target
    from bitdance_edge.runtime import Bundle
    from bitdance_edge.runtime.bundle.record import BuildRecord

EXAMPLE = """examples:
  bitdance-edge build bundles/digits-4x --target cpu
  bitdance-edge build bundles/B-4x --target rtx:8.9,12.0 --max-images 4
  bitdance-edge build bundles/B-4x --target trt:current --stages backbone,head
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Build a bundle for a device, into its folder targets/. cpu: the fastest forms of this processor, already "
        "optimised; cuda: graphs that ONNX Runtime runs on a GPU whole; rtx: TensorRT-RTX engines, with or without a "
        "GPU; trt:current: TensorRT engines for this machine's GPU. Each stage is checked against the bundle's own "
        "before it is put in place; the runtime takes what fits the machine."
    )
    parser.epilog = EXAMPLE
    parser.add_argument("bundle", type=path, help="bundle folder, as made by: bitdance-edge export, or calibrate")
    parser.add_argument(
        "--target", required=True, help="cpu, cuda, rtx, rtx:8.9, rtx:12.0,8.9 or trt:current: the device to build for"
    )
    parser.add_argument(
        "--max-images", type=whole(1, 4096), default=1, help="images that an engine takes at once (default 1)"
    )
    parser.add_argument("--stages", help="comma-separated stages (default: those that the target changes)")
    parser.add_argument(
        "--stream-weights",
        action="store_true",
        help="engines whose weights lie in the host's memory, and on the GPU as far as there is room: slower, and "
        "never part of a CUDA graph",
    )
    parser.add_argument(
        "--refittable", action="store_true", help="engines whose weights TensorRT's IRefitter can replace one by one"
    )
    parser.add_argument("--force", action="store_true", help="build again what is up to date")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be built")


def run(args: argparse.Namespace) -> None:
    from bitdance_edge.engines.engine_form import EngineForm
    from bitdance_edge.engines.targets import parse_engine_target, parse_target
    from bitdance_edge.runtime import Bundle

    bundle, target = Bundle.open(args.bundle), parse_target(args.target)
    if args.stream_weights or args.refittable:
        form = EngineForm(streamed=args.stream_weights, refittable=args.refittable)
        target = parse_engine_target(args.target).with_form(form)
    stages = [name.strip() for name in args.stages.split(",")] if args.stages else []
    with nullcontext() if args.dry_run else _claimed(bundle, target):
        _build(args, bundle, target, stages)


def _claimed(bundle: "Bundle", target: "Target") -> AbstractContextManager[None]:
    """Keep others from building for the same target; the lock is where it stays if nothing is built."""
    from bitdance_edge.runtime.bundle.files import claimed_output
    from bitdance_edge.runtime.bundle.record import target_folder

    return claimed_output(target_folder(bundle, target.name), lock_in=bundle.folder)


def _build(args: argparse.Namespace, bundle: "Bundle", target: "Target", stages: list[str]) -> None:
    from bitdance_edge.engines.build import build_stage
    from bitdance_edge.engines.check import BuildCheck
    from bitdance_edge.engines.plan import plan_builds

    plan = plan_builds(bundle, target, stages, args.max_images, args.force)
    print(f"{bundle.folder} for {target.name} with {target.library} {target.library_version or 'of any version'}")
    print("\n".join(plan.table()), flush=True)
    plan.require_possible()
    if args.dry_run:
        return
    if not plan.to_build:
        print("everything is up to date; --force builds it again")
        return
    started, check, records = time.perf_counter(), BuildCheck(bundle), []
    for number, stage in enumerate(plan.to_build, 1):
        with BuildLine(f"{number}/{len(plan.to_build)} {stage.job.stage}", stage.seconds_before) as line:
            records.append(build_stage(stage, target, check, threading.Event(), line))
        print(_described(records[-1]), flush=True)
    total = sum(record.bytes for record in records)
    print(f"\n{len(records)} stages, {total / 1e6:.1f} MB, {time.perf_counter() - started:.1f} s")
    if check.skipped:
        print(f"not checked against the bundle's own graphs: {check.skipped}")
    say(f"Next:\n  bitdance-edge inspect {quoted(bundle.folder)}")


def _described(record: "BuildRecord") -> str:
    error = "not run here" if record.error is None else f"error {record.error:.1e} (allowed {record.tolerance:.0e})"
    return f"{record.stage:{STAGE_WIDTH}} {record.bytes / 1e6:8.1f} MB {record.seconds:6.1f} s  {error}"


class BuildLine:
    """One line on a terminal while a stage builds: its phase, and the time it takes beside that of the last time."""

    def __init__(self, title: str, seconds_before: float | None) -> None:
        from tqdm import tqdm

        self.before = f" (last time {seconds_before:.1f} s)" if seconds_before else ""
        self.bar = tqdm(bar_format="{desc}", desc=title, leave=False, disable=None)
        self.title = title

    def __enter__(self) -> "BuildLine":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def __call__(self, watch: "BuildWatch") -> None:
        self.bar.set_description_str(f"{self.title}: {watch.seconds:.1f} s{self.before}  {watch.phase}")
