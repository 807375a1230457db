"""What cannot be compared is said in one line, before anything is run."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest
from benching import CHECKPOINT, bench

from bitdance_edge.bench.contenders import find_checkpoint, parse_against
from bitdance_edge.bench.errors import BenchError
from bitdance_edge.runtime import Bundle


def test_a_bundle_of_an_unknown_checkpoint_asks_for_it(bundle: Bundle):
    said = bench(bundle.folder).complaint
    assert "--checkpoint FOLDER" in said
    assert str(bundle.folder) in said


def test_an_unknown_contender_is_named_with_those_that_are_known(bundle: Bundle):
    said = bench(bundle.folder, "--against", "jax").complaint
    assert "'jax'" in said
    assert "torch, torch-compile" in said


def test_without_torch_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else find(name))
    with pytest.raises(BenchError, match="pip install torch"):
        parse_against("torch")


def test_without_openvino_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "openvino" else find(name))
    with pytest.raises(BenchError, match=r"pip install '.*\[openvino\]'"):
        parse_against("torch,openvino")


@pytest.mark.parametrize("kinds", ["onnxruntime", "openvino,onnxruntime"])
def test_other_runtimes_need_pytorch_beside_them(kinds: str):
    with pytest.raises(BenchError, match=f"{kinds}.*without PyTorch.*add torch"):
        parse_against(kinds)


def test_a_checkpoint_with_other_weights_is_refused(tmp_path: Path, bundle: Bundle):
    other = tmp_path / "weights.safetensors"
    other.write_bytes(b"other")
    known = replace(bundle, provenance={"checkpoint": "known", "checkpoint_sha256": "0" * 64})
    with pytest.raises(BenchError, match="other weights"):
        find_checkpoint(known, str(other))
    with pytest.raises(BenchError, match="no checkpoint at"):
        find_checkpoint(known, str(tmp_path / "nowhere"))
    with pytest.raises(BenchError, match="no checkpoint at /dev/zero"):
        find_checkpoint(known, "/dev/zero")
    odd = replace(known, provenance={"checkpoint": "/dev/zero", "checkpoint_sha256": 5})
    with pytest.raises(BenchError, match="is not found"):
        find_checkpoint(odd, None)
    with pytest.raises(BenchError, match="holds other weights"):
        find_checkpoint(odd, str(other))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--threads", "two"), "--threads: 'two' is not a whole number"),
        (("--rounds", "0"), "--rounds: '0' is not a whole number from 1"),
        (("--batch", "1,many"), "--batch: 'many' is not a whole number"),
        (("--patches", "1000"), "--patches is 1000"),
        (("--max-bit-flips", "many"), "--max-bit-flips: 'many' is not a percentage"),
        (("--prompt", "a cat"), "--prompt is for text-to-image"),
    ],
)
def test_values_that_cannot_be_are_refused(bundle: Bundle, arguments: tuple[str, ...], said: str):

    assert said in bench(bundle.folder, "--checkpoint", CHECKPOINT, *arguments).complaint


def test_other_systems_than_linux_are_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    assert "Linux's /proc, and this is darwin" in bench("bundle").complaint
