"""A bundle is written only when every stage computes what PyTorch does."""

import errno
import os
import re
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from places import FIXTURES
from tracing import reuse_graphs

from bitdance_edge.export import exporter
from bitdance_edge.export.check import check_stages
from bitdance_edge.export.errors import ExportError
from bitdance_edge.export.exporter import ExportOptions, can_check, export_bundle, memory_to_check
from bitdance_edge.export.widen import WidenedStage
from bitdance_edge.model import load_generator
from bitdance_edge.runtime import Bundle
from bitdance_edge.runtime.bundle.files import put_in_place
from bitdance_edge.runtime.errors import StorageError

CHECKPOINT = FIXTURES / "cc_4x_patch" / "state.safetensors"


@pytest.mark.parametrize("stage", ["prompt", "tokens", "time", "backbone", "modulation", "head", "decoder", "encoder"])
def test_a_stage_that_differs_is_caught(bundle: Bundle, stage: str) -> None:
    """The exported graphs against a model with one weight of that stage negated (norms undo a mere scale)."""
    changed = {
        "prompt": "backbone.cls_embedding.weight",
        "tokens": "backbone.proj_in.w2.weight",
        "time": "head.time_embed.mlp.0.weight",
        "backbone": "backbone.layers.1.attention.wo.weight",
        "modulation": "head.ada_ln_blocks.0.weight",
        "head": "head.res_blocks.1.w1.weight",
        "decoder": "tokenizer.decoder.up.1.block.0.conv1.weight",
        "encoder": "tokenizer.encoder.conv_out.weight",
    }
    model = load_generator(CHECKPOINT)
    model.get_parameter(changed[stage]).mul_(-1)
    with pytest.raises(ExportError, match=rf"differ from PyTorch:.*{stage} \d"):
        check_stages(model, bundle.folder, dict(bundle.stages), "fp32", lambda what: None)


@pytest.mark.parametrize(
    ("stage", "weight"),
    [
        ("decoder", "tokenizer.decoder.conv_in.weight"),
        ("encoder", "tokenizer.encoder.conv_in.weight"),
        ("backbone", "backbone.layers.1.attention.wo.weight"),
    ],
)
def test_weights_that_are_not_finite_are_caught(bundle: Bundle, stage: str, weight: str) -> None:
    """Bytes of pixels and bits of tokens are finite whatever they are made of."""
    model = load_generator(CHECKPOINT)
    model.get_parameter(weight).view(-1)[0] = float("nan")
    with pytest.raises(ExportError, match=f"^{stage}: PyTorch's own output has values that are not finite"):
        check_stages(model, bundle.folder, dict(bundle.stages), "fp32", lambda what: None)


def test_errors_are_in_the_bundle(bundle: Bundle) -> None:
    for name, stage in bundle.stages.items():
        assert stage.max_error is not None and 0 <= stage.max_error <= stage.tolerance, name
    assert bundle.stages["backbone"].max_error
    assert bundle.provenance["checkpoint"] == "cc_4x_patch"


def test_the_same_export_is_the_same_bundle(tmp_path: Path) -> None:
    options = ExportOptions(name="digits", fast_previews=False, window_patches=0)
    one, other = (export_bundle(load_generator(CHECKPOINT), tmp_path / name, options, {}) for name in ("one", "other"))
    assert one.digest == other.digest


def test_opsets_have_the_same_inputs_and_outputs(exported: Callable[..., Bundle]) -> None:
    one, other = exported("cc_4x_patch", 24), exported("cc_4x_patch", 20)
    for name in one.stages:
        assert one.stages[name].inputs == other.stages[name].inputs
        assert one.stages[name].outputs == other.stages[name].outputs


@pytest.mark.parametrize("opset", [24, 20])
def test_graphs_hold_the_operators_of_their_opset(exported: Callable[..., Bundle], opset: int) -> None:
    bundle = exported("cc_4x_patch", opset)
    named = {"TensorScatter", "RotaryEmbedding", "Attention", "RMSNormalization"}
    model = onnx.load(bundle.folder / bundle.stages["backbone"].graph.path, load_external_data=False)
    assert model.opset_import[0].version == opset
    operators = {node.op_type for node in model.graph.node}
    assert operators & named == (named if opset == 24 else set())


def test_one_backbone_graph_of_free_length(bundle: Bundle) -> None:
    embeddings = bundle.stages["backbone"].inputs[0]
    assert (embeddings.name, embeddings.shape[:2]) == ("embeddings", ("R", "T"))
    weights = sum(spec.bytes for name, stage in bundle.stages.items() for spec in stage.files if "back" in name)
    model = load_generator(CHECKPOINT)
    layers = sum(value.numel() * 4 for value in model.backbone.layers.parameters())
    assert layers < weights < 1.5 * layers


def test_nodes_name_their_module_and_no_path_of_this_machine(bundle: Bundle) -> None:
    for stage in bundle.stages.values():
        content = (bundle.folder / stage.graph.path).read_bytes()
        assert not re.search(rb'File "|site-packages|\.py"', content)
    graph = onnx.load(bundle.folder / bundle.stages["head"].graph.path, load_external_data=False).graph
    paths = [entry.value for node in graph.node for entry in node.metadata_props]
    assert any("head.res_blocks.2.attn" in path for path in paths)


@pytest.mark.parametrize(("fixture", "precision"), [("cc_1x", "fp16"), ("cc_1x", "bf16")])
def test_half_precision_halves_the_weights_and_keeps_the_sampler_in_float32(
    exported: Callable[..., Bundle], fixture: str, precision: str
) -> None:
    half, full = exported(fixture, precision=precision), exported(fixture)
    assert half.stages["head"].weight_bytes == pytest.approx(full.stages["head"].weight_bytes / 2, rel=0.05)
    dtypes = {tensor.name: tensor.dtype for tensor in half.stages["head"].inputs}
    assert dtypes["x"] == dtypes["noise"] == dtypes["coefficients"] == dtypes["guidance"] == "float32"
    assert dtypes["modulation.0"] == {"fp16": "float16", "bf16": "bfloat16"}[precision]
    errors = [bundle.stages["head"].max_error or 0.0 for bundle in (full, half)]
    assert 0 < errors[0] < errors[1]


def test_weights_of_a_bfloat16_graph_are_given_to_it_in_float32(exported: Callable[..., Bundle]) -> None:
    bundle = exported("cc_1x", precision="bf16")
    stage = bundle.stage("time")
    widened = WidenedStage(bundle.folder / stage.graph.path, onnxruntime.SessionOptions())
    assert sum(values.nbytes for values in widened.weights.values()) == 2 * stage.weight_bytes
    times = np.linspace(0, 1, 5, dtype=np.float32)
    model = load_generator(FIXTURES / "cc_1x" / "state.safetensors").bfloat16().float()
    (found,) = widened.run(None, {"times": times})
    assert np.allclose(found, model.head.time_embed(torch.from_numpy(times)).numpy(), atol=1e-3)


def test_stages_are_checked_unless_the_memory_is_known_not_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_generator(CHECKPOINT)
    monkeypatch.setattr(exporter, "available_memory", lambda: None)
    assert can_check(model.state_dict())  # not known
    monkeypatch.setattr(exporter, "available_memory", lambda: memory_to_check(model.state_dict()) - 1)
    assert not can_check(model.state_dict())


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EACCES, "get permission to write there"),
        (errno.EROFS, "mounted read-only"),
    ],
)
def test_a_folder_that_cannot_be_written_is_told_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, said: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(exporter, "export_graph", fail)
    with pytest.raises(StorageError, match=f"^cannot write {tmp_path / 'new'}: .*{said}"):
        export_bundle(load_generator(CHECKPOINT), tmp_path / "new", ExportOptions(name="new"), {})
    assert not list(tmp_path.iterdir())


def test_bundles_that_run_here_get_fast_previews(exported: Callable[..., Bundle]) -> None:
    assert exported("cc_1x").require_fast_previews().bytes < 20_000
    assert exported("cc_1x", precision="bf16").fast_preview is None


def test_gan_decoder_exports_with_its_noise(
    exported: Callable[..., Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    from bitdance_edge.model import BitDance
    from bitdance_edge.runtime import Pipeline, Request

    torch.manual_seed(0)
    known = load_generator(CHECKPOINT)
    config = replace(known.config, tokenizer=replace(known.config.tokenizer, gan_decoder=True))
    model = BitDance(config).eval().requires_grad_(False)
    model.load_state_dict({k: v for k, v in known.state_dict().items() if "tokenizer.decoder" not in k}, strict=False)
    reuse_graphs(monkeypatch, exported("cc_4x_patch"), traced=("decoder",))  # the only stage that has other weights
    options = ExportOptions(name="gan", fast_previews=False, window_patches=0)
    bundle = export_bundle(model, tmp_path / "gan", options, {})
    assert [tensor.name for tensor in bundle.stages["decoder"].inputs] == ["tokens", "noise"]
    with Pipeline.open(bundle.folder) as pipeline:
        one, other = pipeline.generate(Request(classes=[0, 0], seed=3, steps=1))
        same = pipeline.decode(one.tokens[None], seeds=[3])
        texture = pipeline.decode(one.tokens[None], seeds=[4])
    assert (same[0] == one.pixels).all()
    assert (texture != same).any()
    assert other.pixels is not None


def test_failed_export_leaves_the_old_bundle_and_nothing_else(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = Path(shutil.copytree(bundle.folder, tmp_path / "bundle"))
    killed = tmp_path / f".writing-{'0' * 16}"
    killed.mkdir()

    def fail(*_: object) -> None:
        assert len(list(tmp_path.iterdir())) == 3  # the old bundle, the claim on its name, and the one being written
        raise ExportError("differs")

    monkeypatch.setattr(exporter, "export_graph", fail)
    with pytest.raises(ExportError, match="differs"):
        export_bundle(load_generator(CHECKPOINT), target, ExportOptions(name="new", force=True), {})
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    assert Bundle.open(target).digest == bundle.digest


def test_the_old_bundle_comes_back_where_the_new_one_cannot_take_its_place(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "bundle.json").touch()
    with pytest.raises(FileNotFoundError):
        put_in_place(tmp_path / "never-written", tmp_path / "bundle", replace=True)
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")} == {"bundle", "bundle/bundle.json"}


def test_graphs_speak_the_language_of_the_model(exported: Callable[..., Bundle]) -> None:
    bundle = exported("cc_4x_patch")
    for stage, spec in bundle.stages.items():
        graph = onnx.load(bundle.folder / spec.graph.path, load_external_data=False)
        names = [node.name for node in graph.graph.node]
        assert len(set(names)) == len(names)
        assert (graph.producer_name, graph.graph.name) == ("bitdance-edge", stage)
        said = {entry.key: entry.value for entry in graph.metadata_props}
        assert said == {
            "bundle": bundle.name,
            "stage": stage,
            "bitdance_edge_version": version("bitdance-edge"),
            "checkpoint": "cc_4x_patch",
        }
    backbone = onnx.load(bundle.folder / bundle.stages["backbone"].graph.path, load_external_data=False)
    products = {node.name for node in backbone.graph.node if node.op_type == "MatMul"}
    assert {"backbone.layers.0.attention.wqkv", "backbone.layers.1.feed_forward.w2"} <= products
