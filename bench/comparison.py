"""The whole comparison: runs, figures, and the report of them."""

import json
from collections.abc import Callable
from functools import partial
from typing import Any

from bitdance_edge.bench.child import Child
from bitdance_edge.bench.contenders import OURS, TORCH, Contender
from bitdance_edge.bench.figures import figures
from bitdance_edge.bench.machine import processor
from bitdance_edge.bench.plots import write_plot
from bitdance_edge.bench.report import markdown, summary
from bitdance_edge.bench.run_folder import once
from bitdance_edge.bench.runs import BenchOptions, Runs, versions
from bitdance_edge.runtime.bundle.files import written_whole

PLOT = "bench.png"


def compare(options: BenchOptions, command: str, note: Callable[[str], object]) -> dict[str, Any]:
    """Run what the folder does not hold yet, and write ``report.json``, ``report.md`` and the plot.

    Args:
        command: the command line, for the report.
        note: called with lines for the terminal.

    Raises:
        BenchError: a contender cannot run or makes a different image, or the folder holds another comparison.
    """
    machine = processor()
    runs = Runs(options, machine["name"])
    done = runs()
    bundle, work = options.bundles[0], options.work
    settings = work.settings(bundle)
    report = {
        "title": _title(options),
        "command": command,
        "work": work.to_json(),
        "size": str(settings.size),
        "patches": {"drawn": work.drawn(bundle), "of": settings.size.patches},
        "sampling": {
            "steps": settings.steps,
            "sampler": settings.sampler,
            "guidance": settings.guidance,
            "guidance_schedule": settings.guidance_schedule,
        },
        "rounds": options.rounds,
        "machine": machine,
        "versions": versions(),
        "threads": figures(done, runs.graphs, work, machine["last_cache_bytes"]),
        "operators": _operators(options, runs),
    }
    folder = options.folder
    for name, text in (("report.json", json.dumps(report, indent=1) + "\n"), ("report.md", markdown(report, PLOT))):
        with written_whole(folder / name) as file:
            file.write(text.encode())
    write_plot(report["threads"], folder / PLOT)
    for entry in report["threads"]:
        note("\n".join((f"{entry['threads']} threads", *summary(entry), "")))
    note(f"{folder / 'report.md'}: every stage, its floor, memory")
    return report


def _title(options: BenchOptions) -> str:
    names = [contender.name for contender in options.contenders if contender.kind not in TORCH]
    return f"{', '.join(names)} and PyTorch"


def _operators(options: BenchOptions, runs: Runs) -> dict[str, Any]:
    """Trace where each bundle's stages spend their time, with the first number of threads."""
    threads, work = options.threads[0], options.work.to_json()

    def ask(contender: Contender) -> dict[str, Any]:
        with Child(contender.name, threads) as child:
            return child.ask("operators", source=contender.source, threads=threads, work=work)

    ours = [contender for contender in options.contenders if contender.kind == OURS]
    return {c.name: once(runs.kept.of(c, threads, "operators.json"), partial(ask, c)) for c in ours}
