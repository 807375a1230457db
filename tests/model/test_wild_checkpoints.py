"""Checkpoints as people have them: each layout loads to the same weights, whatever else lies there is one error."""

import json
import shutil
import zipfile
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from places import FIXTURES
from safetensors.torch import load_file, save_file
from torch import Tensor

from bitdance_edge.model import GENERATORS, ModelError, load_generator, load_tokenizer, ported

FIXTURE = FIXTURES / "cc_4x_patch"
State = dict[str, Tensor]
SAVED_BESIDE = {  # by the reference's imagenet_gen/train_parallel.py
    "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-4, "params": [0]}]},
    "epochs": 50,
    "args": Namespace(model="BitDance-B", parallel_num=4, lr=3e-4, results_dir="results", no_compile=False),
}


@pytest.fixture
def state() -> State:
    return load_file(FIXTURE / "state.safetensors")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "checkpoint").mkdir()
    shutil.copyfile(FIXTURE / "config.json", tmp_path / "checkpoint" / "config.json")
    return tmp_path / "checkpoint"


def pt(entries: Callable[[State], object], name: str = "epoch_50.pt", **options: bool) -> Callable[[Path, State], Path]:
    def write(folder: Path, state: State) -> Path:
        torch.save(entries(state), folder / name, **options)
        return folder / name

    return write


def named(change: Callable[[str], str]) -> Callable[[State], State]:
    return lambda state: {change(key): value for key, value in state.items()}


def others(state: State) -> State:
    return {key: value + 1 for key, value in state.items()}


def shards(folder: Path, state: State, count: int = 3) -> dict[str, str]:
    """Write shards and return the map of an index, which is not written."""
    keys, weight_map = sorted(state), {}
    for i in range(count):
        name = f"model-{i + 1:05}-of-{count:05}.safetensors"
        save_file({key: state[key] for key in keys[i::count]}, folder / name)
        weight_map |= dict.fromkeys(keys[i::count], name)
    return weight_map


def index(folder: Path, weight_map: object) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}), encoding="utf-8")


def indexed(folder: Path, state: State) -> Path:
    index(folder, shards(folder, state))
    return folder


def unindexed(folder: Path, state: State) -> Path:
    shards(folder, state)
    return folder


def stale_index(folder: Path, state: State) -> Path:
    save_file(state, folder / "model.safetensors")
    index(folder, dict.fromkeys(state, "model-00001-of-00009.safetensors"))
    return folder


def hub_cache(folder: Path, state: State) -> Path:
    """A snapshot of links to files named by their hashes, as huggingface_hub keeps them."""
    blobs, snapshot = folder / "blobs", folder / "snapshots" / "0bc53e2"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    save_file(state, blobs / "9e14fe684d6e")
    (folder / "config.json").rename(blobs / "3ca68c4466cf")
    (snapshot / "model.safetensors").symlink_to("../../blobs/9e14fe684d6e")
    (snapshot / "config.json").symlink_to("../../blobs/3ca68c4466cf")
    return snapshot


def misnamed(suffix: str) -> Callable[[Path, State], Path]:
    def write(folder: Path, state: State) -> Path:
        if suffix == ".pt":
            save_file(state, folder / "weights.pt")
        else:
            torch.save(state, folder / "weights.safetensors")
        return folder / f"weights{suffix}"

    return write


@pytest.mark.parametrize(
    "write",
    [
        pytest.param(pt(lambda s: {"model": others(s), "ema": s, **SAVED_BESIDE}), id="of the trainer"),
        pytest.param(pt(lambda s: {"model": s, **SAVED_BESIDE}), id="of the trainer without average"),
        pytest.param(pt(lambda s: {"ema": {}, "model": s}), id="with an empty average"),
        pytest.param(pt(lambda s: {"state_dict": s, "epoch": 3, "path": Path("runs/1")}), id="state_dict"),
        pytest.param(pt(lambda s: {"ema": {"state_dict": s}}), id="nested"),
        pytest.param(pt(dict), id="raw"),
        pytest.param(pt(dict, _use_new_zipfile_serialization=False), id="of before PyTorch 1.6"),
        pytest.param(pt(lambda s: {"ema": s, **SAVED_BESIDE}, _use_new_zipfile_serialization=False), id="old trainer"),
        pytest.param(pt(dict, "weights.pth"), id="pth"),
        pytest.param(pt(named("module.{}".format)), id="of DistributedDataParallel"),
        pytest.param(pt(named("_orig_mod.{}".format)), id="compiled"),
        pytest.param(pt(named("module._orig_mod.{}".format)), id="both"),
        pytest.param(pt(named(lambda key: key.replace("layers.", "layers._orig_mod."))), id="compiled in part"),
        pytest.param(pt(lambda s: {"state_dict": named("model.{}".format)(s)}), id="of Lightning"),
        pytest.param(misnamed(".pt"), id="safetensors named pt"),
        pytest.param(misnamed(".safetensors"), id="pt named safetensors"),
        pytest.param(indexed, id="shards"),
        pytest.param(unindexed, id="shards without an index"),
        pytest.param(stale_index, id="a stale index beside a whole file"),
        pytest.param(hub_cache, id="hub cache"),
    ],
)
def test_a_layout_loads_to_the_same_weights(write: Callable[[Path, State], Path], folder: Path, state: State) -> None:
    loaded = load_generator(write(folder, state)).state_dict()
    assert torch.equal(loaded["backbone.norm.weight"], state["norm.weight"])
    reference = load_generator(FIXTURE / "state.safetensors").state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in reference.items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_floating_point_type_is_read_as_float32(folder: Path, state: State, dtype: torch.dtype) -> None:
    save_file({key: value.to(dtype) for key, value in state.items()}, folder / "model.fp16.safetensors")
    loaded = load_generator(folder).state_dict()["backbone.norm.weight"]
    assert torch.equal(loaded, state["norm.weight"].to(dtype).float())


PORTED_CONFIG = {
    "_class_name": "BitDanceImageNetTransformer",
    "_diffusers_version": "0.36.0",
    "architecture": "BitDance-B",
    "parallel_num": 4,
    "resolution": 32,
    "down_size": 4,
    "latent_dim": 16,
    "num_classes": 10,
    "source_checkpoint": "BitDance_B_4x.pt",
    "source_key": "ema",
    "runtime_impl": "model_parallel.py",
    "parallel_mode": "patch",
    "time_schedule": "logit_normal",
    "time_shift": 1.0,
    "p_std": 1.0,
    "p_mean": 0.0,
}


@pytest.fixture
def port(tmp_path: Path, state: State, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The class-conditional port: a folder for each variant, here of the fixture's size."""
    folder = tmp_path / "port" / "BitDance_B_4x"
    for part in ("transformer", "autoencoder"):
        (folder / part).mkdir(parents=True)
    (folder / "model_index.json").write_text("{}", encoding="utf-8")
    (folder / "transformer" / "config.json").write_text(json.dumps(PORTED_CONFIG), encoding="utf-8")
    save_file(state, folder / "transformer" / "diffusion_pytorch_model.safetensors")
    vae = {key.removeprefix("vae."): value for key, value in state.items() if key.startswith("vae.")}
    config = json.loads((FIXTURE / "config.json").read_text(encoding="utf-8"))
    ddconfig = {**config["ddconfig"], "z_channels": config["latent_dim"]}
    (folder / "autoencoder" / "config.json").write_text(json.dumps({"ddconfig": ddconfig}), encoding="utf-8")
    save_file(vae, folder / "autoencoder" / "diffusion_pytorch_model.safetensors")
    small = load_generator(FIXTURE / "state.safetensors").config
    monkeypatch.setattr(ported, "GENERATORS", {**GENERATORS, "B-4x": small})
    return folder


def test_the_class_conditional_diffusers_port_is_the_same_model(port: Path, state: State) -> None:
    loaded = load_generator(port, tokenizer=port / "autoencoder").state_dict()
    reference = load_generator(FIXTURE / "state.safetensors").state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in reference.items())
    assert load_generator(port / "transformer").config == load_generator(port).config


def test_a_folder_of_several_ported_variants_names_them(port: Path) -> None:
    shutil.copytree(port, port.with_name("BitDance_L_1x"))
    with pytest.raises(ModelError, match="holds several models; give the folder of one: BitDance_B_4x, BitDance_L_1x"):
        load_generator(port.parent)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"architecture": "BitDance-XL"},
            "architecture 'BitDance-XL' with a parallel_num of 4 is no published variant",
        ),
        ({"resolution": 512}, "resolution is 512; only 32 is supported"),
        ({"parallel_num": "4"}, "parallel_num is '4'; it must be a whole number"),
    ],
)
def test_settings_of_a_ported_model_are_checked(port: Path, change: dict, message: str) -> None:
    (port / "transformer" / "config.json").write_text(json.dumps({**PORTED_CONFIG, **change}), encoding="utf-8")
    with pytest.raises(ModelError, match=message):
        load_generator(port)


def instead(content: bytes, name: str = "model.safetensors") -> Callable[[Path, State], Path]:
    def write(folder: Path, state: State) -> Path:
        if name == "config.json":
            save_file(state, folder / "model.safetensors")
        (folder / name).write_bytes(content)
        return folder

    return write


def with_weight(value: Callable[[Tensor], Tensor]) -> Callable[[Path, State], Path]:
    return pt(lambda state: {**state, "norm.weight": value(state["norm.weight"])})


def with_index(weight_map: Callable[[dict[str, str]], object]) -> Callable[[Path, State], Path]:
    def write(folder: Path, state: State) -> Path:
        index(folder, weight_map(shards(folder, state)))
        return folder

    return write


def without_a_shard(name: str) -> Callable[[Path, State], Path]:
    def write(folder: Path, state: State) -> Path:
        (indexed if name == "index" else unindexed)(folder, state)
        (folder / "model-00002-of-00003.safetensors").unlink()
        return folder

    return write


def dangling(folder: Path, _state: State) -> Path:
    (folder / "model.safetensors").symlink_to("../../blobs/9e14fe684d6e")
    return folder


def compressed(folder: Path, state: State) -> Path:
    torch.save(state, folder / "plain.pt")
    with zipfile.ZipFile(folder / "plain.pt") as plain, zipfile.ZipFile(folder / "small.pt", "w") as small:
        for entry in plain.infolist():
            small.writestr(entry.filename, plain.read(entry), zipfile.ZIP_DEFLATED)
    return folder / "small.pt"


def pickled(content: bytes, *, zipped: bool = True) -> Callable[[Path, State], Path]:
    """A pickle of protocol 2, in an archive as today or by itself."""

    def write(folder: Path, _state: State) -> Path:
        if not zipped:
            (folder / "bomb.pt").write_bytes(b"\x80\x02" + content)
            return folder / "bomb.pt"
        with zipfile.ZipFile(folder / "bomb.pt", "w") as archive:
            archive.writestr("bomb/data.pkl", b"\x80\x02" + content)
            archive.writestr("bomb/version", b"3\n")
        return folder / "bomb.pt"

    return write


def doubled(folder: Path, _state: State) -> Path:
    with zipfile.ZipFile(folder / "twice.pt", "w") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        for content in (b"\x80\x02}.", b"\x80\x02N."):
            archive.writestr("twice/data.pkl", content)
    return folder / "twice.pt"


def cut(folder: Path, state: State) -> Path:
    torch.save(state, folder / "whole.pt")
    (folder / "cut.pt").write_bytes((folder / "whole.pt").read_bytes()[:-100])
    return folder / "cut.pt"


def two_epochs(folder: Path, state: State) -> Path:
    for epoch in (50, 100):
        torch.save({"ema": {"norm.weight": state["norm.weight"]}}, folder / f"epoch_{epoch}.pt")
    return folder


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:3ca68c44\nsize 1841212684\n"


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (instead(LFS), r"model\.safetensors is a Git LFS pointer, not the file itself; fetch it: git lfs pull"),
        (instead(LFS, "config.json"), r"config\.json is a Git LFS pointer"),
        (instead(LFS, "B.pt"), r"B\.pt is a Git LFS pointer"),
        (instead(b"<!DOCTYPE html>\n<html>"), "is a web page, not the file itself"),
        (instead(b"\n<html lang='en'>", "B.pt"), "is a web page, not the file itself"),
        (instead(b"Entry not found: try again later"), "text that begins with 'Entry not found"),
        (instead(b""), "is empty; the download did not finish"),
        (dangling, r"is a link to \.\./\.\./blobs/9e14fe684d6e, which is missing"),
        (cut, r"cut\.pt cannot be read .*truncated"),
        (compressed, r"small\.pt is a compressed archive .*unpack it"),
        (
            pickled(b"]" * 30_000_000),
            r"holds bomb/data\.pkl of 30000002 bytes; beside tensors at most 2000000 are read",
        ),
        (pickled(b"]" * 30_000_000, zipped=False), "its list of tensors is too long"),
        # Of 2 GB, as a number says.
        (pickled(b"cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R."), "holds bytes beside tensors and settings"),
        (pickled(b"cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R.", zipped=False), "or holds something else"),
        (doubled, "has two entries of one name"),
        (two_epochs, r"must hold one file of weights; found 2: epoch_100\.pt, epoch_50\.pt"),
        (without_a_shard("index"), r"lacks model-00002-of-00003\.safetensors: .* names 3 files and 1 are missing"),
        (without_a_shard("name"), "has 2 of 3 files of model"),
        (with_index(lambda _: {}), "names no weights"),
        (
            with_index(lambda m: {**m, "norm.weight": "../x.safetensors"}),
            r"norm\.weight is '\.\./x\.safetensors'; it must",
        ),
        (with_index(lambda m: {**m, "norm.weight": 3}), r"norm\.weight is 3; it must be the name of a file beside it"),
        (with_index(lambda m: {**m, "more.weight": m["norm.weight"]}), r"has no more\.weight, which its index names"),
        (with_weight(lambda w: w.to(torch.int8)), r"norm\.weight is stored as int8; weights are float64, float32"),
        (with_weight(lambda w: w.to(torch.float8_e4m3fn)), r"norm\.weight is stored as float8_e4m3fn"),
        (with_weight(lambda w: w > 0), r"norm\.weight is stored as bool"),
        (with_weight(lambda w: w.to(torch.complex64)), r"norm\.weight is stored as complex64"),
        (with_weight(lambda w: torch.quantize_per_tensor(w, 0.1, 0, torch.qint8)), r"norm\.weight is stored as qint8"),
        (with_weight(lambda w: w.to_sparse()), r"norm\.weight is stored as torch\.sparse_coo; save it as a dense"),
        (with_weight(lambda w: w.to("meta")), r"norm\.weight has no values"),
        (with_weight(lambda w: w[:1].clone().expand(len(w))), r"norm\.weight has fewer values than its shape \[64\]"),
        (with_weight(lambda w: w * float("nan")), r"norm\.weight has values that are not finite"),
        (with_weight(lambda w: w / 0), r"norm\.weight has values that are not finite"),
        (with_weight(lambda w: w.double() * 1e300), r"norm\.weight has values up to \d.*e\+\d+; float32 holds at most"),
        (pt(lambda s: {**s, "module.norm.weight": s["norm.weight"]}), r"has norm\.weight twice, once as module\.norm"),
        (pt(lambda s: {"ema": [1, 2], "epochs": 3}), r"has none of the entries ema, .* it holds \['ema', 'epochs'\]"),
        (pt(lambda s: [1, 2]), "it holds list"),
        (
            pt(lambda s: {"ema": s, "args": torch.nn.Linear(1, 1)}),
            "it names torch.nn.modules.linear.Linear, which could",
        ),
    ],
)
def test_what_is_no_checkpoint_is_one_error(
    write: Callable[[Path, State], Path], message: str, folder: Path, state: State
) -> None:
    with pytest.raises(ModelError, match=message):
        load_generator(write(folder, state))


@pytest.mark.parametrize("path", [None, 3, b"x", "", [], {}])
def test_what_is_no_path_is_one_error(path: object) -> None:
    for load in (load_generator, load_tokenizer):
        with pytest.raises(ModelError, match="give the path of a file or folder"):
            load(path)  # pyright: ignore[reportArgumentType]


def test_a_tokenizer_of_the_wrong_type_is_named(tmp_path: Path, state: State) -> None:
    vae = {key.removeprefix("vae."): value for key, value in state.items() if key.startswith("vae.")}
    vae["decoder.conv_in.bias"] = vae["decoder.conv_in.bias"].to(torch.int8)
    save_file(vae, tmp_path / "ae.safetensors")
    shutil.copyfile(FIXTURE / "config.json", tmp_path / "ae_config.json")
    with pytest.raises(ModelError, match=r"ae\.safetensors: decoder\.conv_in\.bias is stored as I8"):
        load_tokenizer(tmp_path / "ae.safetensors")
