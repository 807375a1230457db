"""The report of a calibration layer by layer: what each layer lost on held-out images, and what nobody has measured."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bitdance_edge.calibration.layer_runs import Images
from bitdance_edge.calibration.recipe import CalibrationRecipe
from bitdance_edge.calibration.report import rounded
from bitdance_edge.calibration.stage_file import Lost
from bitdance_edge.calibration.write import writing
from bitdance_edge.runtime.bundle.manifest import Bundle

SHOWN_LAYERS = 16  # rows of the table; the JSON has all
NOT_MEASURED = (
    "Not measured: bit flips, images, and how the error of one layer grows through those behind it: every layer was "
    "given what the layers before it make as exported."
)


@dataclass(frozen=True)
class LayerFindings:
    """What a calibration layer by layer did.

    Attributes:
        source, written: the bundle as exported, and the new one.
        formats: layers that were rounded -> their format.
        lost: the same layers -> what was rounded away of their weights.
        errors: the same layers -> error of their output on held-out images; none where no image was held out.
    """

    source: Bundle
    written: Bundle
    recipe: CalibrationRecipe
    formats: Mapping[str, str]
    lost: Mapping[str, Lost]
    errors: Mapping[str, float]
    images: Images

    def to_json(self) -> dict[str, Any]:
        return {
            "bundle": self.source.name,
            "bundle_sha256": self.source.digest,
            "recipe": asdict(self.recipe),
            "images": asdict(self.images),
            "not_measured": NOT_MEASURED,
            "stages": {
                name: {
                    "precision": stage.precision,
                    "bytes_before": self.source.stages[name].bytes,
                    "bytes": stage.bytes,
                }
                for name, stage in self.written.stages.items()
            },
            "layers": {
                name: {
                    "format": number,
                    "error_of_weights": (self.lost[name].error / (self.lost[name].size or 1.0)) ** 0.5,
                    "error_of_output": self.errors.get(name),
                }
                for name, number in self.formats.items()
            },
        }

    def summary(self) -> Iterator[str]:
        """The lines that decide, for the terminal and the top of the page."""
        for name, stage in self.written.stages.items():
            found = [error for layer, error in self.errors.items() if layer.startswith(f"{name}:")]
            before = self.source.stages[name].bytes
            how = f"largest error of a layer's output {100 * max(found):.2f} %" if found else ""
            line = f"{name:10} {stage.precision:6} {before / 1e6:10.1f} MB -> {stage.bytes / 1e6:9.1f} MB  {how}"
            yield line.rstrip()
        sizes = [sum(stage.bytes for stage in bundle.stages.values()) for bundle in (self.source, self.written)]
        yield f"{'in total':17} {sizes[0] / 1e6:10.1f} MB -> {sizes[1] / 1e6:9.1f} MB"


def write_layer_report(findings: LayerFindings, folder: Path) -> None:
    """Write ``report.json`` and ``report.md``.

    Raises:
        StorageError: the folder cannot be written.
    """
    page = "\n".join(_markdown(findings)) + "\n"
    report = json.dumps(rounded(findings.to_json()), indent=1) + "\n"
    with writing(folder):
        (folder / "report.json").write_text(report, encoding="utf-8")
        (folder / "report.md").write_text(page, encoding="utf-8")


def _markdown(findings: LayerFindings) -> Iterator[str]:
    recipe, images = findings.recipe, findings.images
    yield f"# {findings.written.name}"
    yield ""
    chosen = ", ".join(f"{stage} {precision}" for stage, precision in recipe.precisions.items())
    yield (
        f"`{findings.source.name}` calibrated layer by layer: {chosen}. {images.seen} images under teacher forcing; "
        f"errors on {images.held_out} others."
    )
    yield ""
    yield NOT_MEASURED
    yield from ("", "```", *findings.summary(), "```", "")
    yield "## Error by layer"
    yield ""
    yield (
        "Root mean square error of a layer's output on held-out images, over that of the output. The largest; "
        "`report.json` has every layer."
    )
    yield ""
    yield "| layer | format | error |"
    yield "|---|---|---:|"
    for name in sorted(findings.errors, key=lambda name: findings.errors[name], reverse=True)[:SHOWN_LAYERS]:
        yield f"| `{name}` | {findings.formats[name]} | {100 * findings.errors[name]:.2f} % |"
