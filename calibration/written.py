"""A calibrated bundle on disk: its graphs, recipe, scales and manifest."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from bitdance_edge.calibration.choice import Chosen
from bitdance_edge.calibration.graphs import read_skeleton, write_graph
from bitdance_edge.calibration.measure import StageLoss
from bitdance_edge.calibration.recipe import Recipe
from bitdance_edge.runtime.bundle.manifest import Bundle, file_spec
from bitdance_edge.runtime.bundle.specs import StageSpec


def write_bundle(bundle: Bundle, folder: Path, recipe: Recipe, chosen: Chosen, formats: Mapping[str, str]) -> Bundle:
    """The calibrated bundle in ``folder``; every stage gets a file of weights of its own.

    Args:
        recipe: with all layers that are kept.
        formats: layers that are quantised in the end.
    """
    stages: dict[str, StageSpec] = {}
    for name, stage in bundle.stages.items():
        source = bundle.verified(name)
        changed = any(layer.name in formats for layer in chosen.variants.layers.get(name, ()))
        precision = recipe.precisions[name] if changed else stage.precision
        path = folder / "onnx" / precision / f"{name}.onnx"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_graph(chosen.variants.graph(name, formats) if changed else read_skeleton(source), source.parent, path)
        weights = path.with_name(f"{path.name}.data")
        held = (file_spec(folder, weights),) if weights.exists() else ()
        stages[name] = replace(
            stage,
            graph=file_spec(folder, path),
            weights=held,
            weight_bytes=sum(file.bytes for file in held),
            precision=precision,
        )
    if bundle.text is not None:
        shutil.copyfile(bundle.verified_file(bundle.text.tokenizer), folder / bundle.text.tokenizer.path)
    if bundle.fast_preview is not None:
        shutil.copyfile(bundle.verified_file(bundle.fast_preview), folder / bundle.fast_preview.path)
    place = folder / "calibration"
    place.mkdir(exist_ok=True)
    (place / "recipe.json").write_text(recipe.to_json())
    (place / "scales.json").write_text(json.dumps(_scales(chosen, formats), indent=1) + "\n")
    written = replace(
        bundle,
        folder=folder,
        name=f"{bundle.name}-{recipe.name}",
        stages=stages,
        links={},
        provenance={
            **bundle.provenance,
            "calibrated_from": bundle.digest,
            "calibrated_with": {package: version(package) for package in ("bitdance-edge", "onnx", "onnxruntime")},
        },
    )
    written.write()
    return Bundle.open(folder)


def with_losses(written: Bundle, losses: Mapping[str, StageLoss]) -> Bundle:
    """The error of calibrated stages, against the same stage as exported, into the manifest."""
    stages = {
        name: replace(stage, max_error=losses[name].largest, tolerance=2 * losses[name].largest)
        if name in losses
        else stage
        for name, stage in written.stages.items()
    }
    replace(written, stages=stages).write()
    return Bundle.open(written.folder)


def _scales(chosen: Chosen, formats: Mapping[str, str]) -> dict[str, dict[str, object]]:
    """Of every quantised layer its format and, where activations are rounded, the limit that their scale reaches."""
    limits = chosen.variants.limits
    return {
        name: {"format": number, **({"limit": limits[name]} if name in limits else {})}
        for name, number in formats.items()
    }
