"""The report of a calibration by weights alone: what was rounded away of each matrix, and what nobody has measured."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitdance_edge.calibration.graphs import Layer
from bitdance_edge.calibration.recipe import CalibrationRecipe
from bitdance_edge.calibration.report import rounded
from bitdance_edge.calibration.stage_file import Lost
from bitdance_edge.calibration.write import writing
from bitdance_edge.runtime.bundle.manifest import Bundle

SHOWN_LAYERS = 12  # rows of the table; the JSON has all
NOT_MEASURED = (
    "Not measured: bit flips, images, and how the error of one layer grows through those behind it. Nothing was run. "
    "Where the bundle fits into memory in float32 or float16, calibrate it without --weights-only to know."
)


@dataclass(frozen=True)
class WeightFindings:
    """What a calibration by weights alone did.

    Attributes:
        source, written: the bundle as exported, and the new one.
        layers: of the stages that were rounded, by name.
        formats: layers that were rounded -> their format.
        lost: the same layers -> what was rounded away.
    """

    source: Bundle
    written: Bundle
    recipe: CalibrationRecipe
    layers: Mapping[str, Layer]
    formats: Mapping[str, str]
    lost: Mapping[str, Lost]

    def error(self, name: str) -> float:
        """Root mean square of what was rounded away of a layer's weight, over that of the weight."""
        lost = self.lost[name]
        return math.sqrt(lost.error / lost.size) if lost.size else 0.0

    def stage_error(self, stage: str) -> float:
        """The same over all rounded weights of a stage."""
        found = [lost for name, lost in self.lost.items() if self.layers[name].stage == stage]
        size = sum(lost.size for lost in found)
        return math.sqrt(sum(lost.error for lost in found) / size) if size else 0.0

    def to_json(self) -> dict[str, Any]:
        stages = {
            name: {
                "precision": stage.precision,
                "bytes_before": self.source.stages[name].bytes,
                "bytes": stage.bytes,
                "error_of_weights": self.stage_error(name) if name in self.recipe.precisions else None,
            }
            for name, stage in self.written.stages.items()
        }
        return {
            "bundle": self.source.name,
            "bundle_sha256": self.source.digest,
            "weights_only": True,
            "not_measured": NOT_MEASURED,
            "stages": stages,
            "layers": {
                name: {
                    "format": self.formats[name],
                    "bytes_before": self.layers[name].weight_bytes,
                    "error_of_weights": self.error(name),
                }
                for name in self.lost
            },
            "as_exported": [name for name in self.layers if name not in self.formats],
        }

    def summary(self) -> Iterator[str]:
        """The lines that decide, for the terminal and the top of the page."""
        for name, stage in self.written.stages.items():
            before = self.source.stages[name].bytes
            how = f"{100 * self.stage_error(name):.2f} % rounded away" if name in self.recipe.precisions else "copied"
            yield f"{name:10} {stage.precision:6} {before / 1e6:10.1f} MB -> {stage.bytes / 1e6:9.1f} MB  {how}"
        sizes = [sum(stage.bytes for stage in bundle.stages.values()) for bundle in (self.source, self.written)]
        yield f"{'in total':17} {sizes[0] / 1e6:10.1f} MB -> {sizes[1] / 1e6:9.1f} MB"


def write_weights_report(findings: WeightFindings, folder: Path) -> None:
    """Write ``report.json`` and ``report.md``.

    Raises:
        StorageError: the folder cannot be written.
    """
    page = "\n".join(_markdown(findings)) + "\n"
    report = json.dumps(rounded(findings.to_json()), indent=1) + "\n"
    with writing(folder):
        (folder / "report.json").write_text(report, encoding="utf-8")
        (folder / "report.md").write_text(page, encoding="utf-8")


def _markdown(findings: WeightFindings) -> Iterator[str]:
    recipe = findings.recipe
    yield f"# {findings.written.name}"
    yield ""
    chosen = ", ".join(f"{stage} {precision}" for stage, precision in recipe.precisions.items())
    yield f"`{findings.source.name}` with its weights alone rounded: {chosen}. Activations stay as exported."
    yield ""
    yield NOT_MEASURED
    yield from ("", "```", *findings.summary(), "```", "")
    yield "## Error by layer"
    yield ""
    yield (
        "Root mean square of what was rounded away of a weight, over that of the weight. The largest; `report.json` "
        "has every layer."
    )
    yield ""
    yield "| layer | format | MB before | error |"
    yield "|---|---|---:|---:|"
    for name in sorted(findings.lost, key=findings.error, reverse=True)[:SHOWN_LAYERS]:
        size = findings.layers[name].weight_bytes / 1e6
        yield f"| `{name}` | {findings.formats[name]} | {size:.2f} | {100 * findings.error(name):.2f} % |"
    others = [
        number for name, number in findings.formats.items() if number != recipe.precisions[findings.layers[name].stage]
    ]
    yield ""
    yield f"{len(findings.formats)} of {len(findings.layers)} matrices and convolutions are rounded."
    if others:
        yield (
            f"{len(others)} of them are {'/'.join(sorted(set(others)))}: products that include their bias, and "
            "matrices whose inputs do not divide into groups."
        )
