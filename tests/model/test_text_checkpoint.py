"""Text-to-image folders: both layouts, shards, and one clear error for each kind of damage."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from places import FIXTURES
from safetensors.torch import load_file, save_file

from bitdance_edge.model import ModelError, TextCheckpoint, load_text_to_image, save_text_to_image
from bitdance_edge.model.prompt import PromptTokenizer

PUBLISHED = FIXTURES / "t2i_16x_swiglu"
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


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    copied = tmp_path / "checkpoint"
    shutil.copytree(PUBLISHED, copied)
    return copied


def shard(folder: Path, count: int = 3) -> None:
    """The language model in several files with an index, as large ones are published."""
    state = load_file(folder / "model.safetensors")
    state["lm_head.weight"] = torch.zeros(4, 4)  # an untied output layer is stored and not needed
    (folder / "model.safetensors").unlink()
    weight_map = {}
    for i in range(count):
        name = f"model-{i + 1:05}-of-{count:05}.safetensors"
        part = {key: state[key] for key in sorted(state)[i::count]}
        save_file(part, folder / name)
        weight_map |= dict.fromkeys(part, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}), encoding="utf-8")


def same_weights(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    state = other.state_dict()
    return all(torch.equal(value, state[key]) for key, value in one.state_dict().items())


def test_diffusers_port_is_the_same_model(tmp_path: Path) -> None:
    for published, ported in PORTED.items():
        (tmp_path / ported).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(PUBLISHED / published, tmp_path / ported)
    (tmp_path / "model_index.json").write_text("{}", encoding="utf-8")
    (tmp_path / "projector" / "config.json").write_text("{}", encoding="utf-8")
    checkpoint = TextCheckpoint.open(tmp_path)
    assert checkpoint.prompt_file == tmp_path / "tokenizer" / "tokenizer.json"
    assert same_weights(checkpoint.load(torch.float32), load_text_to_image(PUBLISHED))


def test_shards_are_one_model(folder: Path) -> None:
    shard(folder)
    assert same_weights(load_text_to_image(folder), load_text_to_image(PUBLISHED))


def test_weights_stay_as_stored_and_in_their_file() -> None:
    model = TextCheckpoint.open(PUBLISHED).load()
    stored = load_file(PUBLISHED / "model.safetensors")
    assert model.backbone.norm.weight.dtype == torch.bfloat16
    assert model.head.cond_embed.weight.dtype == torch.float32
    assert torch.equal(model.backbone.embed_tokens.weight, stored["model.embed_tokens.weight"])


def test_saved_folder_opens_with_its_own_settings(tmp_path: Path) -> None:
    checkpoint = TextCheckpoint.open(PUBLISHED)
    model = checkpoint.load(torch.float32)
    model.config = replace(checkpoint.config, sizes=((64, 128),), max_prompt=40)
    save_text_to_image(model, tmp_path / "saved", (PUBLISHED / "tokenizer.json").read_text(encoding="utf-8"))
    again = TextCheckpoint.open(tmp_path / "saved")
    assert (again.config.sizes, again.config.max_prompt) == (((64, 128),), 40)
    assert again.config == model.config
    assert same_weights(again.load(), model)


def test_published_sizes() -> None:
    from bitdance_edge.model.text_config import SIZES_512, SIZES_1024

    sizes = {*SIZES_512, *SIZES_1024}
    assert len(sizes) == 18
    assert {(width, height) for height, width in sizes} == sizes
    assert TextCheckpoint.open(PUBLISHED).config.sizes == (
        *SIZES_1024,
        *SIZES_512,
    )  # a model with 16 tokens a step makes all


def edit(folder: Path, name: str, change: Callable[[dict], object]) -> None:
    fields = json.loads((folder / name).read_text(encoding="utf-8"))
    change(fields)
    (folder / name).write_text(json.dumps(fields), encoding="utf-8")


def missing_shard(folder: Path) -> None:
    shard(folder)
    (folder / "model-00002-of-00003.safetensors").unlink()


def truncated(folder: Path) -> None:
    path = folder / "vision_head.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def without_tensor(folder: Path) -> None:
    state = load_file(folder / "projector.safetensors")
    del state["fc2.bias"]
    save_file(state, folder / "projector.safetensors")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (missing_shard, r"lacks model-00002-of-00003.safetensors: .* names 3 files and 1 are missing"),
        (truncated, r"vision_head.safetensors has \d+ bytes and is not a whole safetensors file .*; it is truncated"),
        (
            lambda folder: (folder / "ae.safetensors").write_bytes(b"abc"),
            "no complete safetensors header; it is truncated",
        ),
        (lambda folder: (folder / "ae.safetensors").unlink(), "has no ae.safetensors, the weights of the autoencoder"),
        (lambda folder: (folder / "ae_config.json").unlink(), "ae_config.json is missing"),
        (without_tensor, r"1 missing: fc2.bias \[128\]"),
        (lambda f: edit(f, "vision_head_config.json", lambda c: c.update(ch_cond=64)), "do not belong together"),
        (
            lambda f: edit(f, "vision_head_config.json", lambda c: c.pop("ch_latent")),
            r"vision_head_config\.json: ch_latent is missing",
        ),
        (
            lambda f: edit(f, "vision_head_config.json", lambda c: c.update(ch_latent="wide")),
            r"head_config\.json: ch_latent is",
        ),
        (
            lambda f: edit(f, "vision_head_config.json", lambda c: c.update(P_std=None)),
            r"head_config\.json: P_std is None",
        ),
        (lambda f: edit(f, "ae_config.json", lambda c: c.pop("ddconfig")), r"ae_config\.json: ddconfig is missing"),
        (
            lambda f: edit(f, "ae_config.json", lambda c: c["ddconfig"].update(ch=30)),
            r"ae_config\.json: tokenizer level of 30",
        ),
        (lambda f: edit(f, "config.json", lambda c: c.pop("rms_norm_eps")), r"/config\.json: rms_norm_eps is missing"),
        (
            lambda f: edit(f, "config.json", lambda c: c.update(num_key_value_heads=3)),
            r"/config\.json: 4 attention heads",
        ),
        (lambda f: edit(f, "config.json", lambda c: c.update(num_hidden_layers=1)), "unexpected: model.layers.1"),
        (lambda f: edit(f, "config.json", lambda c: c.update(hidden_size="wide")), "hidden_size is 'wide'"),
        (lambda f: edit(f, "config.json", lambda c: c.update(model_type="llama")), "only 'qwen3' is supported"),
        (lambda f: edit(f, "config.json", lambda c: c.update(rope_scaling={"factor": 2})), "only None is supported"),
        (
            lambda f: edit(f, "config.json", lambda c: c.update(bitdance={"sizes": [[60, 64]]})),
            r"/config\.json: bitdance\.sizes is \[\[60, 64\]\]; .*\[height, width\] in multiples of 64 pixels",
        ),
        (
            lambda f: edit(f, "config.json", lambda c: c.update(bitdance={"sampling": {"steps": 0}})),
            r"/config\.json: bitdance\.sampling\.steps is 0; it must be a whole number from 1",
        ),
        (lambda f: edit(f, "config.json", lambda c: c.update(bitdance=3)), r"bitdance is 3; it must be an object"),
        (lambda f: edit(f, "config.json", lambda c: c.update(bitdance={"szies": []})), r"keys \['bitdance\.szies'\]"),
        (lambda f: (f / "config.json").write_text("[]", encoding="utf-8"), r"config\.json holds a list"),
    ],
)
def test_a_damaged_folder_is_one_error_that_names_file_and_field(
    folder: Path, spoil: Callable[[Path], object], message: str
) -> None:
    spoil(folder)
    with pytest.raises(ModelError, match=message):
        TextCheckpoint.open(folder)


def without_queries(folder: Path) -> None:
    def remove(fields: dict) -> None:
        fields["added_tokens"] = [token for token in fields["added_tokens"] if "query_" not in token["content"]]

    edit(folder, "tokenizer.json", remove)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without_queries, r"lacks <\|query_1\|>, .* and 11 more; 16 tokens a step need 16 such tokens"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer at"),
        (lambda folder: (folder / "tokenizer.json").write_text("{", encoding="utf-8"), "is not a tokenizer"),
    ],
)
def test_a_damaged_tokenizer_is_one_error(folder: Path, spoil: Callable[[Path], object], message: str) -> None:
    config = TextCheckpoint.open(folder).config
    spoil(folder)
    with pytest.raises(ModelError, match=message):
        PromptTokenizer.open(folder / "tokenizer.json", config)


def test_tokenizer_of_a_larger_vocabulary_is_refused() -> None:
    config = TextCheckpoint.open(PUBLISHED).config
    smaller = replace(config, backbone=replace(config.backbone, vocabulary=300))
    with pytest.raises(ModelError, match="token ids up to 340, but the model embeds 300"):
        PromptTokenizer.open(PUBLISHED / "tokenizer.json", smaller)


def test_size_without_a_token() -> None:
    prompts = PromptTokenizer.open(PUBLISHED / "tokenizer.json", TextCheckpoint.open(PUBLISHED).config)
    assert prompts.announces(128, 192)
    assert not prompts.announces(2048, 512)
    with pytest.raises(ModelError, match=r"size 512x2048 has no token in this tokenizer, which lacks <\|res_128\|>"):
        prompts.suffix(2048, 512)
