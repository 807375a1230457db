"""What the reports of calibrations that do not hold the bundle have in common: sizes by stage, and errors by layer."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from bitdance_edge.calibration.recipe import CalibrationRecipe
from bitdance_edge.calibration.report import rounded
from bitdance_edge.calibration.write import writing
from bitdance_edge.runtime.bundle.manifest import Bundle
from bitdance_edge.runtime.bundle.stage_names import STAGE_WIDTH

SHOWN_LAYERS = 16  # rows of the table; the JSON has all


def stage_sizes(source: Bundle, written: Bundle) -> dict[str, dict[str, Any]]:
    """Give each stage's precision, and its bytes before and after."""
    return {
        name: {"precision": stage.precision, "bytes_before": source.stages[name].bytes, "bytes": stage.bytes}
        for name, stage in written.stages.items()
    }


def size_lines(source: Bundle, written: Bundle, lost: Mapping[str, str]) -> Iterator[str]:
    """Yield a line a stage, ended by what ``lost`` says of it, and one for the whole bundle."""
    for name, stage in written.stages.items():
        before = source.stages[name].bytes
        line = f"{name:{STAGE_WIDTH}} {stage.precision:6} {before / 1e6:10.1f} MB -> {stage.bytes / 1e6:9.1f} MB"
        yield f"{line}  {lost.get(name, '')}".rstrip()
    before, after = (sum(stage.bytes for stage in bundle.stages.values()) for bundle in (source, written))
    yield f"{'in total':17} {before / 1e6:10.1f} MB -> {after / 1e6:9.1f} MB"


def chosen_precisions(recipe: CalibrationRecipe) -> str:
    """List the stages with their precisions, as in a sentence."""
    return ", ".join(f"{stage} {precision}" for stage, precision in recipe.precisions.items())


def page(title: str, opening: str, not_measured: str, summary: Iterable[str]) -> Iterator[str]:
    """Yield the lines of a page up to its table of layers."""
    yield from (f"# {title}", "", opening, "", not_measured, "")
    yield from ("```", *summary, "```", "")


def layer_errors(of_what: str, formats: Mapping[str, str], errors: Mapping[str, float]) -> Iterator[str]:
    """Yield the table of the layers with the largest errors."""
    yield from ("## Error by layer", "")
    yield f"{of_what} The largest; `report.json` has every layer."
    yield from ("", "| layer | format | error |", "|---|---|---:|")
    for name in sorted(errors, key=lambda name: errors[name], reverse=True)[:SHOWN_LAYERS]:
        yield f"| `{name}` | {formats[name]} | {100 * errors[name]:.2f} % |"


def write_pages(folder: Path, page: Iterable[str], report: Mapping[str, Any]) -> None:
    """Write ``report.json`` and ``report.md``.

    Raises:
        StorageError: the folder cannot be written.
    """
    with writing(folder):
        (folder / "report.json").write_text(json.dumps(rounded(report), indent=1) + "\n", encoding="utf-8")
        (folder / "report.md").write_text("\n".join(page) + "\n", encoding="utf-8")
