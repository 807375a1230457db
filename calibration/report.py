"""Step 6, report: all that was measured, as JSON, and the same to read, as Markdown and plots."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bitdance_edge.calibration.findings import Findings, summary
from bitdance_edge.calibration.plots import write_plots
from bitdance_edge.calibration.search import ranked
from bitdance_edge.calibration.write import writing
from bitdance_edge.runtime.bundle.stage_names import LOOP_STAGES, StageName

SHOWN_LAYERS = 12  # rows of the table of sensitive layers; the JSON has all


def write_report(findings: Findings, pixels: Mapping[str, np.ndarray], folder: Path) -> None:
    """Write ``report.json``, ``report.md`` and the plots that it shows.

    Args:
        pixels: uint8 ``[images, H, W, 3]`` by the names ``reference`` and ``calibrated``.

    Raises:
        StorageError: the folder cannot be written.
    """
    plots = write_plots(findings, pixels, folder)
    report, page = json.dumps(rounded(findings.to_json()), indent=1), "\n".join(_markdown(findings, plots))
    with writing(folder):
        (folder / "report.json").write_text(report + "\n", encoding="utf-8")
        (folder / "report.md").write_text(page + "\n", encoding="utf-8")


def rounded(value: Any) -> Any:
    """Round floats to six significant digits: more is not known, and files stay small."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list | tuple) else value


def _markdown(findings: Findings, plots: Mapping[str, str]) -> Iterator[str]:
    recipe, chosen = findings.recipe, findings.chosen
    yield f"# {findings.name}"
    yield ""
    exported = "/".join(sorted({graph.spec.precision for graph in chosen.variants.graphs.values()}))
    yield (
        f"`{findings.source}` ({exported}) calibrated: "
        + ", ".join(f"{stage} {precision}" for stage, precision in recipe.precisions.items())
        + f". Calibrator {recipe.calibrator}"
        + (f" ({recipe.percentile:g} %)" if recipe.calibrator == "percentile" else "")
        + (f", SmoothQuant {recipe.smooth:g} in {len(chosen.smoothed)} layers" if recipe.smooth else "")
        + f"; {recipe.draw.images} recorded images from seed {recipe.draw.seed}. "
        + "All figures below were measured on other images."
    )
    yield from ("", "```", *summary(findings), "```", "")
    yield from _losses(findings)
    yield from _sizes(findings)
    yield from _judged(findings)
    yield from _searches(findings)
    yield from _sensitive(findings)
    yield from _times(findings)
    yield from ("## Pictures", "")
    for name, text in plots.items():
        yield from (f"![{text}]({name})", "")


def _losses(findings: Findings) -> Iterator[str]:
    losses = findings.losses
    yield "## Bits and stages"
    yield ""
    yield (
        f"{losses.bits.bits} bits of {losses.images.images} images; errors of outputs, and the encoder's bits, on "
        f"{findings.held_out} others. Under teacher forcing every patch is sampled on top of the reference's patches; "
        "in free generation a flipped bit changes all patches after it."
    )
    yield ""
    yield "| stage | relative error of its output | largest error | bit flips with this stage alone |"
    yield "|---|---:|---:|---:|"
    for name, loss in losses.stages.items():
        alone = f"{100 * losses.bits_by_stage[name]:.3f} %" if name in losses.bits_by_stage else ""
        if name == StageName.ENCODER:
            yield f"| {name} | | | {100 * loss.relative:.3f} % |"
        else:
            yield f"| {name} | {loss.relative:.2e} | {loss.largest:.2e} | {alone} |"
    yield ""


def _sizes(findings: Findings) -> Iterator[str]:
    yield "## Size and memory"
    yield ""
    yield (
        "Weights take as much memory where a backend computes in the format: TensorRT in all of them, ONNX Runtime on "
        "the CPU in INT8 and INT4 matrix products. ONNX Runtime unpacks FP8 weights when it loads them, and those of "
        "convolutions at every launch."
    )
    yield ""
    yield "| stage | precision | MB before | MB | saved | not quantised, MB |"
    yield "|---|---|---:|---:|---:|---:|"
    for name, size in findings.losses.sizes.items():
        before, after = size.bytes_before, size.bytes
        yield (
            f"| {name} | {size.precision} | {before / 1e6:.3f} | {after / 1e6:.3f} "
            f"| {100 * (1 - after / before):.0f} % | {min(size.bytes_as_exported, after) / 1e6:.3f} |"
        )
    layers, formats = findings.chosen.layers, findings.chosen.formats
    asked = findings.recipe.precisions
    others = [number for name, number in formats.items() if number != asked[layers[name].stage]]
    yield ""
    yield f"{len(formats)} of {len(layers)} matrix products and convolutions are quantised."
    if others:
        kinds = " or ".join(sorted({number.upper() for number in others}))
        yield (
            f"{len(others)} of them are {kinds} in place of 4 bits: convolutions, narrow matrices, and products that "
            "include their bias."
        )
    yield "Norms, attention, embeddings, biases, the cache and the sampler stay as exported."
    yield ""


def _judged(findings: Findings) -> Iterator[str]:
    if findings.judged is None:
        return
    scores = findings.judged
    yield "## Class agreement and Fréchet distance"
    yield ""
    yield (
        f"{scores['images']} images, seeds {scores['seed']} to {scores['seed'] + scores['images'] - 1}, with the same "
        "noise for both. These two cannot tell 4 bits from float32 on small models; bits and PSNR decide."
    )
    yield ""
    yield "| | class agreement | Fréchet distance |"
    yield "|---|---:|---:|"
    for name, title in (("reference", findings.source), ("calibrated", findings.name)):
        agreement = scores[name].get("class_agreement")
        shown = "" if agreement is None else f"{100 * agreement:.2f} %"
        yield f"| {title} | {shown} | {scores[name]['frechet']:.3f} |"
    real = f"{scores['floor_images']} real images against {scores['references']} references"
    yield f"| {real} | | {scores['floor']:.3f} |"
    yield ""


def _searches(findings: Findings) -> Iterator[str]:
    if not findings.searches and not findings.chosen.left:
        return
    yield "## What stays as exported, and why"
    yield ""
    for part, result in findings.searches.items():
        tried = ", ".join(f"{step.kept} kept: {100 * step.loss:.3f} %" for step in result.tried)
        yield (
            f"Budget of the {part}: at most {100 * result.budget:g} % of {result.bits} bits of held-out images may "
            f"flip. The fewest of the most sensitive layers are kept. Tried: {tried}. "
            f"On images that the search did not see: {100 * findings.tested(part):.3f} %."
        )
        yield ""
    if findings.chosen.left:
        layers = findings.chosen.layers
        errors = {item.layer.name: item for item in findings.sensitivities}
        yield "| layer | weights, MB | error alone | why |"
        yield "|---|---:|---:|---|"
        for name, reason in findings.chosen.left.items():
            error = f"{errors[name].error:.2e}" if name in errors else ""
            yield f"| `{name}` | {layers[name].weight_bytes / 1e6:.3f} | {error} | {reason} |"
        yield ""


def _sensitive(findings: Findings) -> Iterator[str]:
    if not findings.sensitivities:
        return
    yield "## Sensitivity by layer"
    yield ""
    yield (
        "Each layer quantised alone. Error: root mean square change of the predictions whose signs are the bits "
        "(encoder: of the latent; decoder: levels of 255). `report.json` has every layer."
    )
    yield ""
    yield "| layer | format | error | bit flips |"
    yield "|---|---|---:|---:|"
    for stages in (LOOP_STAGES, (StageName.DECODER,), (StageName.ENCODER,)):
        for item in ranked(findings.sensitivities, stages)[: SHOWN_LAYERS if len(stages) > 1 else SHOWN_LAYERS // 4]:
            flips = "" if item.flips is None else f"{100 * item.flips:.3f} %"
            yield f"| `{item.layer.name}` | {item.format} | {item.error:.2e} | {flips} |"
    yield ""


def _times(findings: Findings) -> Iterator[str]:
    steps = findings.steps()
    if not steps:
        return
    yield "## The head's ranges by sampling time"
    yield ""
    yield (
        "Largest magnitude of the inputs of each layer of the head: at the first and the last step, and the smallest "
        "and largest of all steps. "
        + (
            "Samples are weighted by the square of the share of final bits that flip when the prediction is off at "
            "that time (measured; plot below)."
            if findings.chosen.effects is not None
            else "All times count the same."
        )
    )
    yield ""
    yield "| layer | first | last | smallest | largest | largest / smallest |"
    yield "|---|---:|---:|---:|---:|---:|"
    for name, by_step in steps.items():
        values = list(by_step.values())
        low, high = min(values), max(values)
        ratio = f"{high / low:.2f}" if low else ""
        yield f"| `{name}` | {values[0]:.3g} | {values[-1]:.3g} | {low:.3g} | {high:.3g} | {ratio} |"
    yield ""
