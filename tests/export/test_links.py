"""Where weights can be linked, and where they are copied instead."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from commanding import EXPORTED_ONLY
from linking import FIXTURE, MAX_PROMPT, SIZE, checkpoint_in
from places import FIXTURES
from safetensors.torch import load_file, save_file
from tracing import reuse_graphs

from bitdance_edge.cli import main
from bitdance_edge.export import links
from bitdance_edge.export.errors import ExportError
from bitdance_edge.export.links import link_names, refusal
from bitdance_edge.runtime import Bundle

SIZES = "192x128,64x64"  # those of the exported fixture
PORTED = {  # published file -> file in the diffusers port
    "config.json": "text_encoder/config.json",
    "model.safetensors": "text_encoder/model.safetensors",
    "ae_config.json": "autoencoder/config.json",
    "ae.safetensors": "autoencoder/diffusion_pytorch_model.safetensors",
    "vision_head_config.json": "diffusion_head/config.json",
    "vision_head.safetensors": "diffusion_head/diffusion_pytorch_model.safetensors",
    "projector.safetensors": "projector/diffusion_pytorch_model.safetensors",
    "tokenizer.json": "tokenizer/tokenizer.json",
}


def ported_in(folder: Path, dtype: torch.dtype) -> Path:
    """The fixture as the port lays it out; its autoencoder is given a second large component of one file name."""
    published = checkpoint_in(folder.with_name("published"), dtype)
    for source, target in PORTED.items():
        (folder / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(published / source, folder / target)
    (folder / "model_index.json").write_text("{}", encoding="utf-8")
    return folder


def test_files_of_one_name_get_names_of_their_own() -> None:
    files = [Path(f"/c/{part}/diffusion_pytorch_model.safetensors") for part in ("autoencoder", "diffusion_head")]
    names = link_names([*files, files[0], Path("/c/text_encoder/model.safetensors")])
    assert list(names.values()) == [
        "autoencoder-diffusion_pytorch_model.safetensors",
        "diffusion_head-diffusion_pytorch_model.safetensors",
        "model.safetensors",
    ]
    alike = link_names([Path("/a/x/w.safetensors"), Path("/b/x/w.safetensors")])
    assert len(set(alike.values())) == 2


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_port_exports_by_default(
    precision: str,
    exported: Callable[..., Bundle],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from bitdance_edge.export import graph, weights

    if precision == "fp32":
        reuse_graphs(monkeypatch, exported(FIXTURE.name), traced=("head", "decoder"))  # of the two large components
    for module in (graph, weights):
        monkeypatch.setattr(module, "HOLLOW_FROM", 20_000)  # so that two of its components are large
    stored = {"fp32": torch.float32, "fp16": torch.float16}[precision]
    checkpoint = ported_in(tmp_path / "port", stored)
    command = ["export", str(checkpoint), "-o", str(tmp_path / "b"), "--dtype", precision, *EXPORTED_ONLY]
    assert main([*command, "--sizes", SIZES, "--max-prompt", str(MAX_PROMPT)]) == 0, capsys.readouterr().err
    names = {Path(name).name for name in Bundle.open(tmp_path / "b").links}
    head = "diffusion_head-diffusion_pytorch_model.safetensors"
    assert {head, "autoencoder-diffusion_pytorch_model.safetensors"} <= names
    linked = tmp_path / "b" / "onnx" / precision / head
    assert linked.samefile(checkpoint / "diffusion_head" / "diffusion_pytorch_model.safetensors")


def refused(code: int) -> Callable[..., None]:
    def link(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    return link


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (errno.EPERM, "the system refuses hard links to files of other users"),
        (errno.EXDEV, "they are on two file systems"),
        (errno.EMLINK, "as many links as its file system allows"),
        (errno.ENOTSUP, os.strerror(errno.ENOTSUP)),
    ],
)
def test_why_a_link_is_refused(code: int, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links.os, "link", refused(code))
    (tmp_path / "w.safetensors").touch()
    found = refusal({tmp_path / "w.safetensors": "w.safetensors"}, tmp_path / "staged")
    assert found is not None and reason in found


def test_refused_links_fall_back_to_copies(
    exported: Callable[..., Bundle],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    reuse_graphs(monkeypatch, exported(FIXTURE.name), traced=("head",))  # which would have links
    checkpoint = checkpoint_in(tmp_path / "checkpoint", torch.float32)
    monkeypatch.setattr(links.os, "link", refused(errno.EPERM))
    command = ["export", str(checkpoint), "-o", str(tmp_path / "b"), *EXPORTED_ONLY]
    command += ["--sizes", SIZES, "--max-prompt", str(MAX_PROMPT)]
    assert main([*command, "--link-weights"]) == 1
    assert "omit --link-weights to copy the weights" in capsys.readouterr().err
    assert main(command) == 0
    printed = capsys.readouterr()
    assert "weights are copied into the bundle: cannot link" in printed.out + printed.err
    assert not Bundle.open(tmp_path / "b").links


@pytest.mark.parametrize("sizes", ["", ",", "65x65", "4096x4096", "8192x8192,64x64"])
def test_sizes_of_which_none_fits_are_an_error(sizes: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(FIXTURE), "-o", str(tmp_path / "b"), "--sizes", sizes]) == 1
    error = capsys.readouterr().err
    assert "Traceback" not in error and "size" in error


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_a_linked_weight_that_the_precision_cannot_hold_is_named(
    value: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = checkpoint_in(tmp_path / "checkpoint", torch.float32)
    state = load_file(checkpoint / "vision_head.safetensors")
    state["net.input_proj.weight"][3, 4] = value
    save_file(state, checkpoint / "vision_head.safetensors")
    command = ["export", str(checkpoint), "-o", str(tmp_path / "b"), "--sizes", SIZE, "--dtype", "fp16"]
    assert main(command) == 1
    error = capsys.readouterr().err
    assert "vision_head.safetensors: head.input_proj.weight has values" in error
    assert not (tmp_path / "b").exists()


def test_a_module_whose_values_overflow_is_named(bundle: Bundle) -> None:
    from bitdance_edge.export.check import check_stages
    from bitdance_edge.model import load_generator

    model = load_generator(FIXTURES / "cc_4x_patch" / "state.safetensors")
    model.get_parameter("backbone.layers.1.attention.wo.weight").mul_(1e38).mul_(1e3)
    with pytest.raises(ExportError, match=r"The first module with such values is backbone\.layers\.1\.attention\.wo"):
        check_stages(model, bundle.folder, dict(bundle.stages), "fp32", lambda what: None)
