"""The card of a bundle on the Hub, made from its manifest and its calibration's report."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bitdance_edge.runtime import Bundle, BundleError, RequestError
from bitdance_edge.runtime.bundle.hub import NAME
from bitdance_edge.runtime.bundle.json_file import read_json
from bitdance_edge.runtime.bundle.specs import CLASS_CONDITIONAL, TEXT_TO_IMAGE
from bitdance_edge.streams import one_line

LICENSE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]{0,99}")
TAGS = {CLASS_CONDITIONAL: "unconditional-image-generation", TEXT_TO_IMAGE: "text-to-image"}


def model_card(bundle: Bundle, repository: str, license_name: str | None = None) -> str:
    """Write the card of a bundle that goes to ``repository``.

    Args:
        license_name: of the weights; None: the one that the checkpoint's card named.

    Raises:
        RequestError: neither names a licence as the Hub does.
        BundleError: the report of the calibration cannot be read.
    """
    named = license_name or bundle.provenance.get("license")
    if not isinstance(named, str) or LICENSE.fullmatch(named) is None:
        raise RequestError(f"the licence of {bundle.name} is not known: say it with --license, for example apache-2.0")
    parts = (_front_matter(bundle, named), _use(bundle, repository), _stages(bundle), _losses(bundle), _origin(bundle))
    # Line by line, so that a text of the manifest stays on its own.
    return "\n".join(one_line(line) for part in parts for line in (*part, "")).rstrip("\n") + "\n"


def _front_matter(bundle: Bundle, named: str) -> Iterator[str]:
    yield from ("---", f"license: {named}", "library_name: bitdance-edge")
    if tag := TAGS.get(bundle.model.kind):
        yield f"pipeline_tag: {tag}"
    yield "tags: [bitdance, onnx]"
    if isinstance(base := bundle.provenance.get("hub"), str) and NAME.fullmatch(base):
        yield f"base_model: {base}"
    yield "---"


def _use(bundle: Bundle, repository: str) -> Iterator[str]:
    model = bundle.model
    sizes = ", ".join(map(str, model.sizes))
    if not model.generates:
        yield from _tokenizer(bundle, repository, sizes)
        return
    subject = json.dumps(bundle.text.example if bundle.text else str(model.class_names[0] if model.class_names else 0))
    yield f"# {bundle.name}"
    yield ""
    yield f"A {model.kind} BitDance model as a bundle of ONNX graphs for bitdance-edge. Images of {sizes} pixels,"
    yield f"{model.tokens_per_step} tokens of {model.bits} bits a step."
    yield ""
    yield "```python"
    yield "from bitdance_edge import Pipeline"
    yield ""
    yield f'pipe = Pipeline.from_pretrained("{repository}")'
    yield f'pipe({subject}, seed=1).images[0].save("image.png")'
    yield "```"


def _tokenizer(bundle: Bundle, repository: str, sizes: str) -> Iterator[str]:
    yield f"# {bundle.name}"
    yield ""
    yield f"The tokenizer of a BitDance model as a bundle of ONNX graphs for bitdance-edge: images of {sizes} pixels to"
    yield f"tokens of {bundle.model.bits} bits and back."
    yield ""
    yield "```python"
    yield "from bitdance_edge import Pipeline"
    yield "from bitdance_edge.runtime import load_pixels"
    yield ""
    yield f'pipe = Pipeline.from_pretrained("{repository}")'
    yield "size = pipe.bundle.model.default_size"
    yield 'tokens = pipe.tokenize(load_pixels("picture.png", size.height, size.width))'
    yield "pixels = pipe.decode(tokens)"
    yield "```"


def _stages(bundle: Bundle) -> Iterator[str]:
    yield "## Stages"
    yield ""
    yield f"Opset {bundle.opset}. The error is the largest seen when the stage was made, relative to the largest value:"
    yield "of a calibrated stage against the stage as exported, of others ONNX Runtime against PyTorch."
    yield ""
    yield "| stage | precision | MB | largest error | allowed |"
    yield "|---|---|---|---|---|"
    for name, stage in bundle.stages.items():
        error = "not run" if stage.max_error is None else f"{stage.max_error:.1e}"
        allowed = "-" if stage.max_error is None else f"{stage.tolerance:.0e}"
        yield f"| {name} | {stage.precision} | {stage.bytes / 1e6:.2f} | {error} | {allowed} |"


def _losses(bundle: Bundle) -> Iterator[str]:
    report = _report(bundle)
    if report is None:
        return
    try:
        yield from _losses_of(report)
    except (LookupError, TypeError, ValueError, AttributeError):
        raise BundleError(f"{_report_path(bundle)} is no report of a calibration; calibrate the bundle again") from None


def _losses_of(report: Any) -> Iterator[str]:
    bits, images = report["bits"], report["images"]
    psnr = "identical" if images["psnr"] is None else f"{images['psnr']:.2f} dB"
    yield "## Losses of the calibration"
    yield ""
    yield f"Against `{report['bundle']}`, on {images['images']} images with the same noise:"
    yield ""
    forced, free = 100 * bits["forced"], 100 * bits["free"]
    yield f"- bit flips: {forced:.3f} % under teacher forcing, {free:.3f} % in free generation;"
    yield f"- images: PSNR {psnr}, SSIM {images['ssim']:.4f}, {images['identical']} of {images['images']} identical."
    yield ""
    yield "`calibration/report.md` has more."


def _report_path(bundle: Bundle) -> Path:
    return bundle.folder / "calibration" / "report.json"


def _report(bundle: Bundle) -> Any:
    path = _report_path(bundle)
    try:
        return read_json(path)[0]
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise BundleError(f"{path} cannot be read ({error}); calibrate the bundle again") from None


def _origin(bundle: Bundle) -> Iterator[str]:
    yield "## Where it is from"
    yield ""
    for name, value in bundle.provenance.items():
        if value is not None:
            shown = ", ".join(f"{key} {item}" for key, item in value.items()) if isinstance(value, dict) else value
            yield f"- {name.replace('_', ' ')}: {shown}"
