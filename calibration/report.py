"""The report of a calibration: all that was measured, as JSON, and the same for people, as Markdown and plots."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bitdance_edge.calibration.findings import Findings
from bitdance_edge.calibration.plots import write_plots
from bitdance_edge.runtime.bundle.stage_names import LOOP_STAGES

SHOWN_LAYERS = 12  # rows of the table of sensitive layers; the JSON has all


def write_report(findings: Findings, pixels: Mapping[str, np.ndarray], folder: Path) -> None:
    """``report.json``, ``report.md`` and the plots that it shows."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(json.dumps(_rounded(findings.to_json()), indent=1) + "\n")
    plots = write_plots(findings, pixels, folder)
    (folder / "report.md").write_text("\n".join(_markdown(findings, plots)) + "\n")


def _rounded(value: Any) -> Any:
    """Floats with six significant digits: more is not known, and files stay small."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list | tuple) else value


def summary(findings: Findings) -> Iterator[str]:
    """The few lines that decide, for the terminal and the top of the page."""
    bits, images = findings.bits, findings.images
    sizes = findings.sizes().values()
    before, after = (sum(size[key] for size in sizes) for key in ("bytes_before", "bytes"))
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
            f"real against real: {findings.judged['floor']:.3f})"
        )
    yield f"size           {before / 1e6:.2f} MB -> {after / 1e6:.2f} MB ({100 * after / before:.0f} %)"
    planned = findings.memory()
    yield f"memory         {planned[0] / 1e6:.2f} MB -> {planned[1] / 1e6:.2f} MB (planned, one image at a time)"
    for part, search in findings.searches.items():
        yield (
            f"budget         {part}: {len(search.kept)} of {search.layers} layers kept as exported for "
            f"{100 * search.budget:g} %; {100 * search.loss:.3f} % on the images of the search, "
            f"{100 * findings.tested(part):.3f} % on others"
        )
        if findings.tested(part) > search.budget:
            yield "               over the budget there: search on more (--search-images), or ask for less"


def _decibel(value: float | None) -> str:
    return "identical" if value is None else f"{value:.2f} dB"


def _markdown(findings: Findings, plots: Mapping[str, str]) -> Iterator[str]:
    recipe = findings.recipe
    yield f"# {findings.calibrated.name}"
    yield ""
    exported = "/".join(sorted({findings.bundle.stages[stage].precision for stage in recipe.precisions}))
    yield (
        f"`{findings.bundle.name}` ({exported}) calibrated: "
        + ", ".join(f"{stage} {precision}" for stage, precision in recipe.precisions.items())
        + f". Calibrator {recipe.calibrator}"
        + (f" ({recipe.percentile:g} %)" if recipe.calibrator == "percentile" else "")
        + (f", SmoothQuant {recipe.smooth:g} in {len(findings.smoothed)} layers" if recipe.smooth else "")
        + f"; {recipe.draw.images} recorded images from seed {recipe.draw.seed}. "
        + "All below was measured on other images."
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
    bits = findings.bits
    yield "## Bits and stages"
    yield ""
    yield (
        f"{bits.bits} bits of {findings.images.images} images; errors of outputs, and the encoder's bits, on "
        f"{findings.held_out} others. Under teacher forcing every patch is sampled on top of the reference's patches; "
        "in free generation a flipped bit changes all patches after it."
    )
    yield ""
    yield "| stage | relative error of its output | largest error | bits that turn with this stage alone |"
    yield "|---|---:|---:|---:|"
    for name, loss in findings.stage_losses.items():
        alone = f"{100 * findings.stage_bits[name]:.3f} %" if name in findings.stage_bits else ""
        if name == "encoder":
            yield f"| {name} | | | {100 * loss.relative:.3f} % |"
        else:
            yield f"| {name} | {loss.relative:.2e} | {loss.largest:.2e} | {alone} |"
    yield ""


def _sizes(findings: Findings) -> Iterator[str]:
    yield "## Size and memory"
    yield ""
    yield (
        "Weights take this in memory too where a backend computes in the format: TensorRT in all of them, ONNX Runtime "
        "on the CPU in INT8 and INT4 matrix products. It unpacks FP8 when it loads, and convolutions at every launch. "
        "The last column is what remains unquantised."
    )
    yield ""
    yield "| stage | precision | MB before | MB | saved | of it not quantised, MB |"
    yield "|---|---|---:|---:|---:|---:|"
    for name, size in findings.sizes().items():
        before, after = size["bytes_before"], size["bytes"]
        yield (
            f"| {name} | {size['precision']} | {before / 1e6:.3f} | {after / 1e6:.3f} "
            f"| {100 * (1 - after / before):.0f} % | {min(size['bytes_as_exported'], after) / 1e6:.3f} |"
        )
    others = sum(1 for name in findings.formats if _other_format(findings, name))
    yield ""
    yield f"{len(findings.formats)} of {len(findings.layers)} matrix products and convolutions are quantised."
    if others:
        yield f"{others} of them are INT8 where INT4 was asked for: convolutions, and products with their bias inside."
    yield "Norms, attention, embeddings, biases, the cache and the sampler stay as exported."
    yield ""


def _other_format(findings: Findings, name: str) -> bool:
    return findings.formats[name] != findings.recipe.precisions[findings.layers[name].stage]


def _judged(findings: Findings) -> Iterator[str]:
    if findings.judged is None:
        return
    scores = findings.judged
    yield "## Class agreement and Fréchet distance"
    yield ""
    yield (
        f"{scores['images']} images, seeds {scores['seed']} to {scores['seed'] + scores['images'] - 1}, the same noise "
        "for both. These two cannot tell 4 bits from float32 on small models; bits and PSNR decide."
    )
    yield ""
    yield "| | class agreement | Fréchet distance |"
    yield "|---|---:|---:|"
    for name, title in (("reference", findings.bundle.name), ("calibrated", findings.calibrated.name)):
        agreement = scores[name].get("class_agreement")
        shown = "" if agreement is None else f"{100 * agreement:.2f} %"
        yield f"| {title} | {shown} | {scores[name]['frechet']:.3f} |"
    real = f"{scores['floor_images']} real images against {scores['references']} references"
    yield f"| {real} | | {scores['floor']:.3f} |"
    yield ""


def _searches(findings: Findings) -> Iterator[str]:
    if not findings.searches and not findings.left:
        return
    yield "## What stays as exported, and why"
    yield ""
    for part, search in findings.searches.items():
        tried = ", ".join(f"{step.kept} kept: {100 * step.loss:.3f} %" for step in search.tried)
        yield (
            f"Budget of the {part}: at most {100 * search.budget:g} % of {search.bits} bits of held-out images. The "
            f"most sensitive layers are kept, as few as will do. Tried: {tried}. "
            f"On images that the search did not see: {100 * findings.tested(part):.3f} %."
        )
        yield ""
    if findings.left:
        errors = {item.layer.name: item for item in findings.sensitivities}
        yield "| layer | weights, MB | error alone | why |"
        yield "|---|---:|---:|---|"
        for name, reason in findings.left.items():
            error = f"{errors[name].error:.2e}" if name in errors else ""
            yield f"| `{name}` | {findings.layers[name].weight_bytes / 1e6:.3f} | {error} | {reason} |"
        yield ""


def _sensitive(findings: Findings) -> Iterator[str]:
    if not findings.sensitivities:
        return
    yield "## Sensitivity by layer"
    yield ""
    yield (
        "Only this layer quantised. Error: root mean square change of the predictions whose signs are the bits "
        "(encoder: of the latent; decoder: levels of 255). The JSON has every layer."
    )
    yield ""
    yield "| layer | format | error | bits that turn |"
    yield "|---|---|---:|---:|"
    for stages in (LOOP_STAGES, ("decoder",), ("encoder",)):
        chosen = sorted((i for i in findings.sensitivities if i.layer.stage in stages), key=lambda i: -i.error)
        for item in chosen[: SHOWN_LAYERS if len(stages) > 1 else SHOWN_LAYERS // 4]:
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
        "Largest magnitude of what enters each layer of the head, first and last step and the extremes between. "
        + (
            "Samples are weighted by the square of how many final bits turn when the prediction is off at that time "
            "(measured; plot below)."
            if findings.effects is not None
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
