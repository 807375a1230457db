"""Everything that a calibration found out, as one value: what the report is written from."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from bitdance_edge.calibration.collect import Activations
from bitdance_edge.calibration.layers import Layer
from bitdance_edge.calibration.measure import BitLoss, ImageLoss, StageLoss
from bitdance_edge.calibration.recipe import Recipe
from bitdance_edge.calibration.recording import SAMPLED_STAGES
from bitdance_edge.calibration.search import SearchResult
from bitdance_edge.calibration.sensitivity import Sensitivity
from bitdance_edge.runtime.bundle.manifest import Bundle
from bitdance_edge.runtime.memory_plan import plan_memory


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What a calibration found; names of layers are ``stage:module``.

    Attributes:
        recipe: with the layers that a search kept.
        formats: layers that are quantised -> "int8", "fp8" or "int4".
        left: layers of quantised stages that are not -> why.
        held_out: images of ``stage_losses``.
        stage_bits: stage of the generator -> share of bits that turn where it alone is quantised.
        searches: "generator" or "encoder" -> the search for its budget; none without a budget.
        activations: what was recorded of every layer's input.
        effects: float64 ``[steps + 1]``, see ``times``; None where all times count the same.
        judged: scores of both bundles' images (see ``judge``), None where no network judged them.
    """

    bundle: Bundle
    calibrated: Bundle
    recipe: Recipe
    layers: Mapping[str, Layer]
    formats: Mapping[str, str]
    left: Mapping[str, str]
    held_out: int
    stage_losses: Mapping[str, StageLoss]
    stage_bits: Mapping[str, float]
    bits: BitLoss
    images: ImageLoss
    sensitivities: list[Sensitivity]
    searches: Mapping[str, SearchResult]
    activations: Mapping[str, Activations]
    effects: np.ndarray | None
    smoothed: tuple[str, ...]
    judged: Mapping[str, Any] | None

    def sizes(self) -> dict[str, dict[str, Any]]:
        """Bytes of every stage before and after, and its weights that are not quantised."""
        quantized: dict[str, int] = {}
        for name in self.formats:
            layer = self.layers[name]
            quantized[layer.stage] = quantized.get(layer.stage, 0) + layer.weight_bytes
        return {
            name: {
                "precision": self.calibrated.stages[name].precision,
                "bytes_before": stage.bytes,
                "bytes": self.calibrated.stages[name].bytes,
                "bytes_as_exported": stage.bytes - quantized.get(name, 0),
            }
            for name, stage in self.bundle.stages.items()
        }

    def memory(self) -> tuple[int, int]:
        """Bytes that one image takes before and after, as planned: weights, cache, tensors, activations."""
        before, after = (plan_memory(bundle, 1).held for bundle in (self.bundle, self.calibrated))
        return before, after

    def tested(self, part: str) -> float:
        """Share of bits that turn in a part that was searched, on images that the search did not see."""
        if part == "generator":
            return self.bits.forced
        lost = self.stage_losses.get("encoder")
        return lost.relative if lost else 0.0  # all of its layers were kept

    def steps(self) -> dict[str, dict[int, float]]:
        """Layer of the head -> sampling step, of those that were recorded -> largest magnitude of what enters it."""
        return {
            name: dict(sorted(seen.by_step.items()))
            for name, seen in self.activations.items()
            if self.layers[name].stage in SAMPLED_STAGES
        }

    def to_json(self) -> dict[str, Any]:
        return {
            "bundle": self.bundle.name,
            "bundle_sha256": self.bundle.digest,
            "precisions": dict(self.recipe.precisions),
            "recipe": asdict(self.recipe),
            "sizes": self.sizes(),
            "memory_of_one_image": dict(zip(("before", "after"), self.memory(), strict=True)),
            "bits": asdict(self.bits),
            "bits_by_stage_alone": dict(self.stage_bits),
            "images": asdict(self.images),
            "stages": {name: asdict(loss) for name, loss in self.stage_losses.items()},
            "judge": self.judged,
            "searches": {
                name: {**asdict(search), "tested": self.tested(name)} for name, search in self.searches.items()
            },
            "left_as_exported": dict(self.left),
            "smoothed": list(self.smoothed),
            "sensitivity": [
                {"layer": item.layer.name, "format": item.format, "error": item.error, "flips": item.flips}
                for item in self.sensitivities
            ],
            "effect_of_times": None if self.effects is None else [float(value) for value in self.effects],
            "largest_by_time": self.steps(),
        }
