"""The report of a calibration layer by layer: what each layer lost on held-out images, and what nobody has measured."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bitdance_edge.calibration.layer_runs import Images
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
    "Not measured: bit flips, images, and how the error of one layer grows through those behind it: every layer was "
    "given what the layers before it make as exported."
)
ERROR = "Root mean square error of a layer's output on held-out images, over that of the output."


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
            "stages": stage_sizes(self.source, self.written),
            "layers": {
                name: {
                    "format": number,
                    "error_of_weights": self.lost[name].relative_error,
                    "error_of_output": self.errors.get(name),
                }
                for name, number in self.formats.items()
            },
        }

    def summary(self) -> Iterator[str]:
        """The lines that decide, for the terminal and the top of the page."""
        lost = {}
        for name in self.written.stages:
            if found := [error for layer, error in self.errors.items() if layer.startswith(f"{name}:")]:
                lost[name] = f"largest error of a layer's output {100 * max(found):.2f} %"
        yield from size_lines(self.source, self.written, lost)


def write_layer_report(findings: LayerFindings, folder: Path) -> None:
    """Write ``report.json`` and ``report.md``.

    Raises:
        StorageError: the folder cannot be written.
    """
    write_pages(folder, _markdown(findings), findings.to_json())


def _markdown(findings: LayerFindings) -> Iterator[str]:
    images = findings.images
    opening = (
        f"`{findings.source.name}` calibrated layer by layer: {chosen_precisions(findings.recipe)}. {images.seen} "
        f"images under teacher forcing; errors on {images.held_out} others."
    )
    yield from page(findings.written.name, opening, NOT_MEASURED, findings.summary())
    yield from layer_errors(ERROR, findings.formats, findings.errors)
