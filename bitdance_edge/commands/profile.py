"""``bitdance-edge profile``: where the time of each stage goes, measured by TensorRT's own profiler."""

import argparse
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from bitdance_edge.commands.common import say
from bitdance_edge.commands.values import path, whole

if TYPE_CHECKING:
    from bitdance_edge.engines.reports.layer_times import LayerTime
    from bitdance_edge.engines.reports.trtexec import ProfileRun
    from bitdance_edge.runtime import Bundle

EXAMPLE = """examples:
  bitdance-edge profile bundles/B-4x --target rtx --out profile
  sh profile/profile.sh        (elsewhere: where the profiler and a GPU are)
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Write the trtexec (for RTX: tensorrt_rtx) command of each stage, with the inputs of a real generation step; "
        "where that program is installed, or the engines run from Python, say which modules take the time."
    )
    parser.epilog = EXAMPLE
    parser.add_argument("bundle", type=path, help="bundle folder")
    parser.add_argument("--target", default="rtx", help="whose engines: rtx (default), rtx:8.9, ..., trt:current")
    parser.add_argument("--out", type=path, default=Path("profile"), metavar="FOLDER", help="default: profile")
    parser.add_argument("--layers", type=whole(0), default=20, help="slowest layers shown of each stage (default 20)")


def run(args: argparse.Namespace) -> None:
    from bitdance_edge.engines.engine_run import open_engines
    from bitdance_edge.engines.graph import read_graph
    from bitdance_edge.engines.reports.layer_profiler import profile_engine
    from bitdance_edge.engines.reports.trtexec import PROGRAMS, profile_runs, shell_script, write_inputs
    from bitdance_edge.engines.samples import record_samples
    from bitdance_edge.engines.targets import parse_engine_target
    from bitdance_edge.runtime import BitDanceError, Bundle, written_whole

    bundle, target = Bundle.open(args.bundle), parse_engine_target(args.target)
    say("recording the inputs of a generation step")
    samples = record_samples(bundle)
    runs = profile_runs(bundle, target, samples, write_inputs(args.out, samples), args.out)
    script = args.out / "profile.sh"
    with written_whole(script) as file:
        file.write(shell_script(runs).encode())
    print(script)
    program = PROGRAMS[target.library]
    if shutil.which(program):
        for each in runs:
            _report(each, _by_program(each, bundle, args), args)
        return
    try:
        backend = open_engines(bundle, target.folder(bundle), target.library)
    except BitDanceError as error:
        print(
            f"{program} is not on this machine's PATH, and engines cannot run from Python ({error}): copy bundle and "
            f"{args.out} to where one of the two is, and run {script}, or this command again"
        )
        return
    try:
        for each in runs:
            facts = read_graph(bundle.folder / bundle.stage(each.stage).graph.path)
            _report(each, profile_engine(backend, each.stage, samples[each.stage, each.sample], facts), args)
    finally:
        backend.close()


def _by_program(run: "ProfileRun", bundle: "Bundle", args: argparse.Namespace) -> "list[LayerTime]":
    from bitdance_edge.engines.graph import read_graph
    from bitdance_edge.engines.reports.layer_times import read_layer_times
    from bitdance_edge.runtime import BuildError

    log = args.out / f"{run.stage}-{run.sample}.log"
    with log.open("wb") as output:
        status = subprocess.run(run.command, stdout=output, stderr=subprocess.STDOUT).returncode
    if status:
        raise BuildError(f"{run.title}: {run.command[0]} ended with status {status}; what it said is in {log}")
    facts = read_graph(bundle.folder / bundle.stage(run.stage).graph.path)
    return read_layer_times(run.layer_times, run.layer_info, facts)


def _report(run: "ProfileRun", layers: "list[LayerTime]", args: argparse.Namespace) -> None:
    from bitdance_edge.engines.reports.chart import bar_chart
    from bitdance_edge.engines.reports.layer_times import layer_table, module_times
    from bitdance_edge.runtime import save_png

    total = sum(layer.milliseconds for layer in layers)
    print(f"\n{run.title}: {total:.4f} ms in {len(layers)} layers")
    print("\n".join(list(layer_table(layers))[: args.layers + 1]))
    chart = args.out / f"{run.stage}-{run.sample}.png"
    save_png(bar_chart(f"{run.title}: {total:.4f} ms by module", module_times(layers), "ms"), chart)
    print(chart)
