"""Published files load unchanged; anything else is one clear error."""

import json
from pathlib import Path

import pytest
import torch
from places import FIXTURES
from safetensors.torch import load_file, save_file

from bitdance_edge.model import GENERATORS, BitDance, ModelError, load_generator, load_tokenizer, save_generator
from bitdance_edge.model import checkpoint as checkpoint_module

FIXTURE = FIXTURES / "cc_4x_patch"


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    return load_file(FIXTURE / "state.safetensors")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text((FIXTURE / "config.json").read_text(encoding="utf-8"), encoding="utf-8")
    return tmp_path


def test_pt_prefers_ema_and_falls_back_to_model(folder: Path, state: dict[str, torch.Tensor]) -> None:
    other = {key: value + 1 for key, value in state.items()}
    torch.save({"ema": state, "model": other}, folder / "both.pt")
    torch.save({"model": other}, folder / "model.pt")
    key = "backbone.norm.weight"
    assert torch.equal(load_generator(folder / "both.pt").state_dict()[key], state["norm.weight"])
    assert torch.equal(load_generator(folder / "model.pt").state_dict()[key], other["norm.weight"])


def test_autoencoder_pt_keeps_only_encoder_and_decoder(folder: Path, state: dict[str, torch.Tensor]) -> None:
    vae = {key.removeprefix("vae."): value for key, value in state.items() if key.startswith("vae.")}
    torch.save({"state_dict": {**vae, "discriminator.weight": torch.zeros(3)}}, folder / "ae.pt")
    loaded = load_tokenizer(folder / "ae.pt").state_dict()
    assert loaded.keys() == vae.keys()


def test_tokenizer_file_replaces_the_one_inside(folder: Path, state: dict[str, torch.Tensor]) -> None:
    vae = {key.removeprefix("vae."): value * 2 for key, value in state.items() if key.startswith("vae.")}
    torch.save({"state_dict": vae}, folder / "ae.pt")
    model = load_generator(FIXTURE / "state.safetensors", tokenizer=folder / "ae.pt")
    assert torch.equal(model.tokenizer.state_dict()["decoder.conv_in.bias"], vae["decoder.conv_in.bias"])


def test_pickle_with_code_is_refused(folder: Path) -> None:
    torch.save({"ema": {"a": torch.nn.Linear(1, 1)}}, folder / "evil.pt")
    with pytest.raises(ModelError, match="more than tensors"):
        load_generator(folder / "evil.pt")


def test_wrong_keys_are_one_error_with_both_shapes(folder: Path, state: dict[str, torch.Tensor]) -> None:
    del state["norm.weight"]
    state["surprise"] = torch.zeros(2, 3)
    state["emb_norm.weight"] = torch.zeros(65)
    save_file(state, folder / "model.safetensors")
    with pytest.raises(ModelError) as error:
        load_generator(folder)
    message = str(error.value)
    assert "1 missing: norm.weight [64]" in message
    assert "1 unexpected: surprise [2, 3]" in message
    assert "emb_norm.weight [65], expected [64]" in message


def test_checkpoint_of_another_variant_names_the_right_one(monkeypatch: pytest.MonkeyPatch) -> None:
    other = load_generator(FIXTURES / "cc_1x" / "state.safetensors").config
    monkeypatch.setattr(checkpoint_module, "GENERATORS", {"small-4x": GENERATORS["B-4x"], "small-1x": other})
    with pytest.raises(ModelError, match="try --variant small-1x"):
        load_generator(FIXTURES / "cc_1x" / "state.safetensors", variant="small-4x")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("cut.safetensors", b"\x10\x00", "truncated"),
        ("cut.pt", b"PK\x03\x04", "truncated"),
        ("other.bin", b"x", ".safetensors or .pt"),
    ],
)
def test_unreadable_file(folder: Path, name: str, content: bytes, message: str) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(ModelError, match=message):
        load_generator(folder / name)


def test_missing_file_and_missing_variant(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    with pytest.raises(ModelError, match="no checkpoint at"):
        load_generator(tmp_path / "nothing.pt")
    torch.save({"ema": state}, tmp_path / "B.pt")
    with pytest.raises(ModelError, match="--variant, one of B-1x"):
        load_generator(tmp_path / "B.pt")
    with pytest.raises(ModelError, match="no variant 'B-2x'; there are B-1x"):
        load_generator(tmp_path / "B.pt", variant="B-2x")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"parallel_num": 3}, "must be a square"),
        ({"patch_size": 2}, "patch_size is 2, but the tokenizer"),
        ({"parallel_mode": "spiral"}, "'standard' or 'patch'"),
        ({"time_schedule": "cosine"}, "logit_normal"),
        ({"dim": "64"}, "dim is .64.; it must be a whole number from 1"),
        ({"n_layer": 0}, "n_layer is 0"),
        ({"surprise": 1}, "unknown keys .'surprise'."),
        ({"down_size": 8}, "down_size is 8, but the tokenizer in .ddconfig. gives 4"),
        ({"resolution": 33}, r"config\.json: resolution 33 is not a multiple"),
        ({"ddconfig": 4}, r"config\.json: ddconfig is 4; it must be an object"),
        ({"sampling": {"steps": 5}}, r"config\.json: sampling\.guidance is missing; it must be a number"),
        ({"sampling": {"steps": 5, "guidance": 1, "guidance_schedule": "cubic"}}, "'constant' or 'linear'"),
        ({"class_names": ["zero"]}, "1 class names for 10 classes"),
        ({"ddconfig": {"ch": 30, "ch_mult": [1, 1, 1], "num_res_blocks": 1}}, "multiple of 32"),
    ],
)
def test_configuration_errors_name_the_value(folder: Path, change: dict, message: str) -> None:
    config = json.loads((FIXTURE / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, **change}), encoding="utf-8")
    (folder / "state.safetensors").write_bytes((FIXTURE / "state.safetensors").read_bytes())
    with pytest.raises(ModelError, match=message):
        load_generator(folder)


def test_saved_checkpoint_loads_to_the_same_weights(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    model = load_generator(FIXTURE / "state.safetensors")
    save_generator(model, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}
    assert load_generator(tmp_path).config == model.config
    saved = load_file(tmp_path / "model.safetensors")
    assert saved.keys() == state.keys()
    assert all(torch.equal(saved[key], state[key]) for key in state)


def test_a_folder_that_cannot_be_written_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ModelError, match=r"cannot write .*file.out \(.*\); choose a folder that you may write to"):
        save_generator(load_generator(FIXTURE / "state.safetensors"), tmp_path / "file" / "out")


@pytest.mark.parametrize("name", GENERATORS)
def test_published_sizes(name: str) -> None:
    """Parameters of backbone and head, as the authors give them (242M, 260M, 260M, 527M, 1.0B)."""
    published = {"B-1x": 242e6, "B-4x": 260e6, "B-16x": 260e6, "L-1x": 527e6, "H-1x": 1.0e9}
    with torch.device("meta"):
        model = BitDance(GENERATORS[name])
    own = sum(value.numel() for part in (model.backbone, model.head) for value in part.parameters())
    assert own == pytest.approx(published[name], rel=0.05)
