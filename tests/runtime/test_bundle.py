"""A bundle is whole and unaltered, or it is refused with a reason."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from bitdance_edge.runtime import Bundle, BundleError, Pipeline, Request


@pytest.fixture
def copy(bundle: Bundle, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle.folder, tmp_path / "copy"))


def edit(folder: Path, change: Callable[[dict], object]) -> None:
    manifest = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
    change(manifest)
    (folder / "bundle.json").write_text(json.dumps(manifest), encoding="utf-8")


def generate(folder: Path) -> None:
    with Pipeline.open(folder) as pipeline:
        pipeline.generate(Request(classes=[0], steps=1))


def test_truncated_file(copy: Path) -> None:
    weights = copy / "onnx/fp32/head.onnx.data"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(BundleError, match=r"head.onnx.data has \d+ bytes, its bundle says \d+"):
        generate(copy)


def test_altered_file(copy: Path) -> None:
    weights = copy / "onnx/fp32/backbone.onnx.data"
    content = bytearray(weights.read_bytes())
    content[1000] ^= 1
    weights.write_bytes(content)
    with pytest.raises(BundleError, match=r"backbone.onnx.data was altered"):
        generate(copy)


def test_missing_file(copy: Path) -> None:
    (copy / "onnx/fp32/prompt.onnx").unlink()
    with pytest.raises(BundleError, match=r"prompt.onnx is missing"):
        generate(copy)


def test_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="bitdance-edge export"):
        Pipeline.open(tmp_path)


def test_truncated_manifest(copy: Path) -> None:
    manifest = copy / "bundle.json"
    manifest.write_text(manifest.read_text(encoding="utf-8")[:-20], encoding="utf-8")
    with pytest.raises(BundleError, match="is not JSON"):
        Bundle.open(copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda m: m.update(format=99),
            "format 99; this version reads 3 to 5: export it again with: bitdance-edge export cc_4x_patch",
        ),
        (lambda m: m.pop("cache"), "lacks cache"),
        (lambda m: m.update(surprise=1), "unknown surprise"),
        (lambda m: m["model"].update(bits="many"), "model.bits is 'many'; int is expected"),
        (lambda m: m["model"].pop("patch_side"), "model lacks patch_side"),
        (lambda m: m["stages"]["head"]["graph"].update(path="../../etc/passwd"), "only files inside itself"),
        (lambda m: m["stages"]["head"]["graph"].update(path="/etc/passwd"), "only files inside itself"),
        (lambda m: m["stages"].update(head=3), "stages.head is int; an object is expected"),
    ],
)
def test_wrong_manifest(copy: Path, change: Callable[[dict], object], message: str) -> None:
    edit(copy, change)
    with pytest.raises(BundleError, match=message):
        Bundle.open(copy)


def test_manifest_from_before_there_were_samplers_and_fast_previews(bundle: Bundle, copy: Path) -> None:
    def older(manifest: dict) -> None:
        for name in ("published", "fast_preview"):
            del manifest[name]
        del manifest["sampling"]["sampler"]

    edit(copy, older)
    opened = Bundle.open(copy)
    assert opened.sampling == opened.published_sampling == bundle.sampling
    assert opened.fast_preview is None


def as_format_3(manifest: dict) -> None:
    """The format before: sizes are [height, width], suffixes have HEIGHTxWIDTH keys, a named profile says the opset."""
    manifest["format"] = 3
    del manifest["window"]
    opset = manifest.pop("opset")
    manifest["profile"] = {24: "kv", 20: "portable"}[opset] + str(opset)
    model = manifest["model"]
    model["sizes"] = [[size["height"], size["width"]] for size in model["sizes"]]
    if manifest["text"] is not None:
        suffixes = manifest["text"]["suffixes"].items()
        manifest["text"]["suffixes"] = {"x".join(reversed(size.split("x"))): ids for size, ids in suffixes}


@pytest.mark.parametrize(("fixture", "opset"), [("cc_4x_patch", 24), ("cc_4x_patch", 20), ("t2i_16x_swiglu", 24)])
def test_manifest_of_the_format_before_opens_the_same(
    exported: Callable[..., Bundle], fixture: str, opset: int, tmp_path: Path
) -> None:
    bundle = exported(fixture, opset)
    folder = Path(shutil.copytree(bundle.folder, tmp_path / "copy"))
    edit(folder, as_format_3)
    opened = Bundle.open(folder)
    assert opened.opset == opset
    assert replace(opened, digest=bundle.digest, folder=bundle.folder) == replace(bundle, window=None)
    opened.write()
    assert json.loads((folder / "bundle.json").read_text(encoding="utf-8"))["format"] == 5


def test_manifest_of_the_format_before_that_is_not_whole(copy: Path) -> None:
    edit(copy, as_format_3)
    edit(copy, lambda manifest: manifest.update(profile="unknown"))
    with pytest.raises(BundleError, match=r"bundle.json is not whole; copy or export the bundle again"):
        Bundle.open(copy)
    edit(copy, lambda manifest: manifest.pop("profile"))
    with pytest.raises(BundleError, match=r"bundle.json is not whole"):
        Bundle.open(copy)


def test_missing_stage_is_named(copy: Path) -> None:
    edit(copy, lambda manifest: manifest["stages"].pop("encoder"))
    with Pipeline.open(copy) as pipeline, pytest.raises(BundleError, match="has no encoder stage"):
        pipeline.bundle.stage("encoder")


def test_written_manifest_reads_back_the_same(bundle: Bundle, copy: Path) -> None:
    opened = Bundle.open(copy)
    (copy / "bundle.json").unlink()
    opened.write()
    again = Bundle.open(copy)
    assert again == opened
    assert again.digest == bundle.digest
