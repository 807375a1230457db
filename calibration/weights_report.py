"""The report of a calibration by weights alone: what was rounded away of each matrix, and what nobody has measured."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitdance_edge.calibration.graphs import Layer
from bitdance_edge.calibration.recipe import CalibrationRecipe
from bitdance_edge.calibration.rounded_pages import (
    chosen_precisions,
    layer_errors,
    page,
    size_lines,
    stage_sizes,
    write_pages,
)
from bitdance_edge.calibration.stage_file import Lost
from bitdance_edge.runtime.bundle.manifest import Bundle

NOT_MEASURED = (
    "Not measured: bit flips, images, and how the error of one layer grows through those behind it. Nothing was run. "
    "Where the bundle fits into memory in float32 or float16, calibrate it without --weights-only to know."
)
ERROR = "Root mean square of what was rounded away of a weight, over that of the weight."


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

    @property
    def errors(self) -> dict[str, float]:
        """Layer -> root mean square of what was rounded away of its weight, over that of the weight."""
        return {name: lost.relative_error for name, lost in self.lost.items()}

    def stage_error(self, stage: str) -> float:
        """The same over all rounded weights of a stage."""
        found = [lost for name, lost in self.lost.items() if self.layers[name].stage == stage]
        return Lost(sum(lost.error for lost in found), sum(lost.size for lost in found)).relative_error

    def to_json(self) -> dict[str, Any]:
        sizes, rounded = stage_sizes(self.source, self.written), self.recipe.precisions
        errors = self.errors
        return {
            "bundle": self.source.name,
            "bundle_sha256": self.source.digest,
            "weights_only": True,
            "not_measured": NOT_MEASURED,
            "stages": {
                name: {**size, "error_of_weights": self.stage_error(name) if name in rounded else None}
                for name, size in sizes.items()
            },
            "layers": {
                name: {
                    "format": self.formats[name],
                    "bytes_before": self.layers[name].weight_bytes,
                    "error_of_weights": error,
                }
                for name, error in errors.items()
            },
            "as_exported": [name for name in self.layers if name not in self.formats],
        }

    def summary(self) -> Iterator[str]:
        """The lines that decide, for the terminal and the top of the page."""
        rounded = self.recipe.precisions
        lost = {
            name: f"{100 * self.stage_error(name):.2f} % rounded away" if name in rounded else "copied"
            for name in self.written.stages
        }
        yield from size_lines(self.source, self.written, lost)


def write_weights_report(findings: WeightFindings, folder: Path) -> None:
    """Write ``report.json`` and ``report.md``.

    Raises:
        StorageError: the folder cannot be written.
    """
    write_pages(folder, _markdown(findings), findings.to_json())


def _markdown(findings: WeightFindings) -> Iterator[str]:
    recipe, formats = findings.recipe, findings.formats
    opening = (
        f"`{findings.source.name}` with its weights alone rounded: {chosen_precisions(recipe)}. Activations stay as "
        "exported."
    )
    yield from page(findings.written.name, opening, NOT_MEASURED, findings.summary())
    yield from layer_errors(ERROR, formats, findings.errors)
    others = [number for name, number in formats.items() if number != recipe.precisions[findings.layers[name].stage]]
    yield ""
    yield f"{len(formats)} of {len(findings.layers)} matrices and convolutions are rounded."
    if others:
        yield (
            f"{len(others)} of them are {'/'.join(sorted(set(others)))}: products that include their bias, narrow "
            "matrices, and those whose inputs do not divide into groups."
        )
