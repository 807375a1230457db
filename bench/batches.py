"""Comparisons with several numbers of images at once, one after the other, and a table of them all."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from bitdance_edge.bench.comparison import compare
from bitdance_edge.bench.runs import BenchOptions
from bitdance_edge.runtime.bundle.files import written_whole

PAGE = "batches.md"


def compare_batches(
    options: BenchOptions, batches: Sequence[int], command: str, note: Callable[[str], object]
) -> dict[str, Any]:
    """Compare with each number of images at once; with several, each in a folder of its own, and write ``batches.md``.

    Args:
        batches: numbers of images at once, without repetition; ``options.work`` gives the rest.
        command, note: as for ``compare``.

    Returns:
        the report of the comparison; with several, ``{"batches": {"1": its report, ...}}``.

    Raises:
        BenchError: as ``compare``.
    """
    if len(batches) == 1:
        return compare(replace(options, work=replace(options.work, images=batches[0])), command, note)
    reports = {}
    for images in batches:
        folder = options.folder / f"batch-{images}"
        note(f"{images} image{'s' if images > 1 else ''} at once")
        asked = replace(options, work=replace(options.work, images=images), folder=folder)
        reports[images] = compare(asked, command, note)
    page = "\n".join(_page(reports, command))
    with written_whole(options.folder / PAGE) as file:
        file.write(f"{page}\n".encode())
    note(page)
    return {"batches": {str(images): report for images, report in reports.items()}}


def _page(reports: dict[int, dict[str, Any]], command: str) -> Iterator[str]:
    first = next(iter(reports.values()))
    yield from (f"# {first['title']}, by batch", "", "```", command, "```", "")
    yield "Seconds of the processor, and in brackets of the clock, for each image; by the number of images at once."
    for place, entry in enumerate(first["threads"]):
        yield from ("", f"## {entry['threads']} thread{'s' if entry['threads'] > 1 else ''}", "")
        yield "".join(["| |", *(f" {images} |" for images in reports)])
        yield "|---|" + "---:|" * len(reports)
        for row, contender in enumerate(entry["contenders"]):
            found = [(images, report["threads"][place]["contenders"][row]) for images, report in reports.items()]
            cells = (f" {each['cpu'] / images:.3g} ({each['wall'] / images:.3g}) |" for images, each in found)
            yield "".join([f"| {contender['name']} |", *cells])
    yield from ("", *(f"- [{images} at once](batch-{images}/report.md)" for images in reports))
