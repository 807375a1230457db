"""``bitdance-edge build``: TensorRT engines for GPUs that need not be here, or graphs for the processor that is."""

import argparse
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bitdance_edge.engines.progress import BuildWatch
    from bitdance_edge.runtime import Bundle

EXAMPLE = """examples:
  bitdance-edge build bundles/digits-4x --target rtx
  bitdance-edge build bundles/B-4x --target rtx:8.9,12.0 --max-images 4
  bitdance-edge build bundles/B-4x --target trt:current --stages backbone,head
  bitdance-edge build bundles/B-4x --target cpu
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Build a TensorRT engine of every stage; targets rtx and rtx:... need no GPU. Target cpu writes graphs that "
        "ONNX Runtime has optimised for the processor of this machine, so that a bundle opens at once."
    )
    parser.epilog = EXAMPLE
    parser.add_argument("bundle", help="bundle folder, as made by: bitdance-edge export")
    parser.add_argument("--target", default="rtx", help="rtx (default), rtx:8.9, rtx:12.0,8.9, trt:current or cpu")
    parser.add_argument("--max-images", type=int, default=1, help="images that can run together (default 1)")
    parser.add_argument("--stages", help="comma-separated stages (default: all)")
    parser.add_argument("--force", action="store_true", help="build again what is up to date")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be built")


def run(args: argparse.Namespace) -> None:
    from bitdance_edge.engines.builder import build_stage
    from bitdance_edge.engines.plan import plan_builds
    from bitdance_edge.engines.targets.tensorrt import Target
    from bitdance_edge.runtime import Bundle
    from bitdance_edge.runtime.backends.tensorrt_library import load_library

    bundle = Bundle.open(args.bundle)
    named = [name.strip() for name in args.stages.split(",")] if args.stages else None
    if args.target == "cpu":
        # Generating does not load the encoder, and it is large.
        _prepare(bundle, named or [name for name in bundle.stages if name != "encoder"], args)
        return
    target, stages = Target.parse(args.target), named or list(bundle.stages)
    library = load_library(target.library)
    plan = plan_builds(bundle, target, library, stages, args.max_images, args.force)
    print(f"{bundle.folder} for {target.name} with {library.name} {library.version}")
    print("\n".join(plan.table()), flush=True)
    plan.require_possible()
    if args.dry_run:
        return
    if not plan.to_build:
        print("all engines are up to date; --force builds them again")
        return
    started, total = time.perf_counter(), 0
    for number, stage in enumerate(plan.to_build, 1):
        with BuildLine(f"{number}/{len(plan.to_build)} {stage.build.stage}", stage.seconds_before) as line:
            sidecar = build_stage(stage.build, library, threading.Event(), line)
        print(f"{stage.build.engine}: {sidecar.bytes / 1e6:.1f} MB, {sidecar.seconds:.1f} s", flush=True)
        total += sidecar.bytes
    print(f"\n{len(plan.to_build)} engines, {total / 1e6:.1f} MB, {time.perf_counter() - started:.1f} s. Next:")
    print(f"  bitdance-edge inspect {plan.to_build[0].build.engine}")


def _prepare(bundle: "Bundle", stages: list[str], args: argparse.Namespace) -> None:
    from bitdance_edge.engines.targets.cpu import prepare, unprepared

    size = sum(bundle.stage(name).bytes for name in stages)
    if not args.force and not unprepared(bundle, stages):
        print("all graphs are up to date; --force writes them again")
        return
    print(f"{bundle.folder} for this processor: {', '.join(stages)}, about {size / 1e6:.0f} MB", flush=True)
    if args.dry_run:
        return
    started = time.perf_counter()
    made = sum(file.bytes for record in prepare(bundle, stages) for file in record.files)
    print(f"{len(stages)} graphs, {made / 1e6:.1f} MB, {time.perf_counter() - started:.1f} s")


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
