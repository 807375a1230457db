"""A bundle is written only when every stage computes what PyTorch does."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from conftest import FIXTURES

from bitdance_edge.export import exporter
from bitdance_edge.export.check import check_stages
from bitdance_edge.export.errors import ExportError
from bitdance_edge.export.exporter import ExportOptions, export_bundle
from bitdance_edge.model import load_generator
from bitdance_edge.runtime import Bundle
from bitdance_edge.runtime.bundle.files import put_in_place

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


def test_errors_are_in_the_bundle(bundle: Bundle) -> None:
    for name, stage in bundle.stages.items():
        assert stage.max_error is not None and 0 <= stage.max_error <= stage.tolerance, name
    assert bundle.stages["backbone"].max_error
    assert bundle.provenance["checkpoint"] == "cc_4x_patch"


def test_profiles_have_the_same_inputs_and_outputs(exported: Callable[..., Bundle]) -> None:
    one, other = exported("cc_4x_patch", "kv24"), exported("cc_4x_patch", "portable20")
    for name in one.stages:
        assert one.stages[name].inputs == other.stages[name].inputs
        assert one.stages[name].outputs == other.stages[name].outputs


@pytest.mark.parametrize(("profile", "opset"), [("kv24", 24), ("portable20", 20)])
def test_graphs_hold_the_operators_of_their_profile(exported: Callable[..., Bundle], profile: str, opset: int) -> None:
    bundle = exported("cc_4x_patch", profile)
    named = {"TensorScatter", "RotaryEmbedding", "Attention", "RMSNormalization"}
    model = onnx.load(bundle.folder / bundle.stages["backbone"].graph.path, load_external_data=False)
    assert model.opset_import[0].version == opset
    operators = {node.op_type for node in model.graph.node}
    assert operators & named == (named if profile == "kv24" else set())


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


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("fixture", ["cc_1x", "cc_4x_patch"])
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


def test_bundles_that_run_here_get_fast_previews(exported: Callable[..., Bundle]) -> None:
    assert exported("cc_1x").require_fast_previews().bytes < 20_000
    assert exported("cc_1x", precision="bf16").fast_preview is None


def test_gan_decoder_exports_with_its_noise(tmp_path: Path) -> None:
    from dataclasses import replace

    from bitdance_edge.model import BitDance
    from bitdance_edge.runtime import Pipeline, Request

    torch.manual_seed(0)
    config = load_generator(CHECKPOINT).config
    config = replace(config, tokenizer=replace(config.tokenizer, gan_decoder=True))
    model = BitDance(config).eval().requires_grad_(False)
    bundle = export_bundle(model, tmp_path / "gan", ExportOptions(name="gan"), {})
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
    killed = tmp_path / ".bundle.writing-999999999"
    killed.mkdir()

    def fail(*_: object) -> None:
        assert len(list(tmp_path.iterdir())) == 2  # the old bundle and the one being written
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
        put_in_place(tmp_path / "never-written", tmp_path / "bundle")
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")} == {"bundle", "bundle/bundle.json"}
