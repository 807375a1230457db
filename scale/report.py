"""The figures of an evaluation, as lines for the terminal and as JSON."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from bitdance_edge.evaluation.extractor import Extractor
from bitdance_edge.runtime.values import counted
from bitdance_edge.scale.scores import Figure, Figures

TITLES = {
    "fid": "FID",
    "frechet": "Fréchet distance",
    "inception_score": "inception score",
    "class_agreement": "class agreement",
    "precision": "precision",
    "recall": "recall",
    "bits_flipped": "bits flipped",
    "psnr_db": "PSNR (dB)",
    "ssim": "SSIM",
    "identical": "identical images",
}
SHARES = ("class_agreement", "precision", "recall", "bits_flipped", "identical")


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was found.

    Attributes:
        images: of each set; ``sets``: figures of each, by its name.
        difference: how much more the second set has; ``pairs``: of its images, compared with the first's.
    """

    images: int
    sets: Mapping[str, Figures]
    about: Mapping[str, Any] = field(default_factory=dict)
    difference: Figures = field(default_factory=dict)
    pairs: Figures = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The report as it is written to a file; a figure is its value and its standard error."""
        return {
            "images": self.images,
            **self.about,
            "sets": {name: _plain(figures) for name, figures in self.sets.items()},
            **({"difference": _plain(self.difference)} if self.difference else {}),
            **({"pairs": _plain(self.pairs)} if self.pairs else {}),
        }

    def lines(self) -> Iterator[str]:
        """A table of the scores, a column a set, and the figures of the pairs."""
        names = [*self.sets, *(["difference"] if self.difference else [])]
        columns = [*self.sets.values(), *([self.difference] if self.difference else [])]
        rows = [
            [TITLES[score], *(_shown(score, column.get(score)) for column in columns)]
            for score in next(iter(self.sets.values()))
        ]
        yield from _aligned([[counted(self.images, "image"), *names], *rows])
        if self.pairs:
            yield ""
            yield from _aligned([[TITLES[name], _shown(name, figure)] for name, figure in self.pairs.items()])


def about(extractor: Extractor, reference: str | None) -> dict[str, Any]:
    """What the figures were measured with, for the report's file."""
    return {
        "network": extractor.path.name,
        "network_sha256": extractor.digest,
        "standard_inception": extractor.is_inception,
        **({} if reference is None else {"reference": reference}),
    }


def _shown(name: str, figure: Figure | None) -> str:
    if figure is None:
        return ""
    if name in SHARES:
        error = "" if figure.error is None else f" ± {100 * figure.error:.2f}"
        return f"{100 * figure.value:.2f}{error} %"
    error = "" if figure.error is None else f" ± {figure.error:.3f}"
    return f"{figure.value:.3f}{error}"


def _aligned(rows: list[list[str]]) -> Iterator[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _plain(figures: Figures) -> dict[str, dict[str, float | None]]:
    return {name: {"value": figure.value, "error": figure.error} for name, figure in figures.items()}
