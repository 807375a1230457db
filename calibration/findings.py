"""Everything that a calibration found, as one value: what the report is written from."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from bitdance_edge.calibration.choose import Chosen
from bitdance_edge.calibration.measure import Losses
from bitdance_edge.calibration.recipe import CalibrationRecipe
from bitdance_edge.calibration.record import SAMPLED_STAGES
from bitdance_edge.calibration.search import GENERATOR, SearchResult, Sensitivity
from bitdance_edge.runtime.bundle.stage_names import StageName


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What a calibration found; names of layers are ``stage:module``.

    Attributes:
        name: of the calibrated bundle.
        source, source_sha256: name and digest of the bundle that it was made of.
        recipe: with the layers that a search kept.
        chosen: formats and scales, without these layers.
        sensitivities: of all layers, or none.
        searches: "generator" or "encoder" -> the search for its budget; none without a budget.
        held_out: the number of images that stages were compared on.
        judged: scores of both bundles' images (see ``judge``), None where no network judged them.
    """

    name: str
    source: str
    source_sha256: str
    recipe: CalibrationRecipe
    chosen: Chosen
    sensitivities: list[Sensitivity]
    searches: Mapping[str, SearchResult]
    held_out: int
    losses: Losses
    judged: Mapping[str, Any] | None

    def tested(self, part: str) -> float:
        """Share of bits that flip in a part that was searched, on images that the search did not see."""
        if part == GENERATOR:
            return self.losses.bits.forced
        lost = self.losses.stages.get(StageName.ENCODER)
        return lost.relative if lost else 0.0  # all of its layers were kept

    def steps(self) -> dict[str, dict[int, float]]:
        """Layer of the head -> sampling step, of those that were recorded -> largest magnitude of its inputs."""
        layers = self.chosen.layers
        return {
            name: dict(sorted(seen.by_step.items()))
            for name, seen in self.chosen.activations.items()
            if layers[name].stage in SAMPLED_STAGES
        }

    def to_json(self) -> dict[str, Any]:
        losses, effects = self.losses, self.chosen.effects
        return {
            "bundle": self.source,
            "bundle_sha256": self.source_sha256,
            "precisions": dict(self.recipe.precisions),
            "recipe": asdict(self.recipe),
            "sizes": {name: asdict(size) for name, size in losses.sizes.items()},
            "memory_of_one_image": dict(zip(("before", "after"), losses.memory, strict=True)),
            "bits": asdict(losses.bits),
            "bits_by_stage_alone": dict(losses.bits_by_stage),
            "images": asdict(losses.images),
            "stages": {name: asdict(loss) for name, loss in losses.stages.items()},
            "judge": self.judged,
            "searches": {
                name: {**asdict(result), "tested": self.tested(name)} for name, result in self.searches.items()
            },
            "left_as_exported": dict(self.chosen.left),
            "smoothed": list(self.chosen.smoothed),
            "sensitivity": [
                {"layer": item.layer.name, "format": item.format, "error": item.error, "flips": item.flips}
                for item in self.sensitivities
            ],
            "effect_of_times": None if effects is None else [float(value) for value in effects],
            "largest_by_time": self.steps(),
        }


def summary(findings: Findings) -> Iterator[str]:
    """Yield the few lines that decide, for the terminal and the top of the page."""
    losses = findings.losses
    bits, images, memory = losses.bits, losses.images, losses.memory
    before = sum(size.bytes_before for size in losses.sizes.values())
    after = sum(size.bytes for size in losses.sizes.values())
    yield f"bit flips      {100 * bits.forced:.3f} % under teacher forcing, {100 * bits.free:.3f} % in free generation"
    same = f"{images.identical} of {images.images} identical"
    yield f"images         {_decibel(images.psnr)}, SSIM {images.ssim:.4f}, {same}"
    yield f"decoder alone  {_decibel(images.decoder_psnr)}, SSIM {images.decoder_ssim:.4f}"
    if findings.judged:
        reference, calibrated = findings.judged["reference"], findings.judged["calibrated"]
        if "class_agreement" in reference:
            yield (
                f"class agreement {100 * calibrated['class_agreement']:.2f} % "
                f"(before: {100 * reference['class_agreement']:.2f} %)"
            )
        yield (
            f"Fréchet        {calibrated['frechet']:.3f} (before: {reference['frechet']:.3f}, "
            f"real images: {findings.judged['floor']:.3f})"
        )
    yield f"size           {before / 1e6:.2f} MB -> {after / 1e6:.2f} MB ({100 * after / before:.0f} %)"
    yield f"memory         {memory[0] / 1e6:.2f} MB -> {memory[1] / 1e6:.2f} MB (planned, one image at a time)"
    for part, result in findings.searches.items():
        tested = findings.tested(part)
        yield (
            f"budget         {part}: {len(result.kept)} of {result.layers} layers kept as exported for "
            f"{100 * result.budget:g} %; {100 * result.loss:.3f} % on the images of the search, "
            f"{100 * tested:.3f} % on others"
        )
        if tested > result.budget:
            yield (
                f"               budget missed on the other images: {100 * tested:.3f} % of bits flip, "
                f"{100 * result.budget:g} % may; raise --search-images, or lower --max-bit-flips (exit status 3)"
            )


def _decibel(value: float | None) -> str:
    return "identical" if value is None else f"{value:.2f} dB"
