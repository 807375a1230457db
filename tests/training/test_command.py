import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from bitdance_edge.commands.train import configure, run
from bitdance_edge.model import ModelError, load_generator
from bitdance_edge.training.errors import TrainingError

TINY = ["--size", "16", "--steps", "4", "--batch-size", "4", "--set", "warmup_steps=1"]
TINY_GENERATOR = [
    *TINY,
    "--set",
    "width=32",
    "--set",
    "heads=2",
    "--set",
    "layers=1",
    "--set",
    "head_width=64",
    "--set",
    "head_blocks=1",
]


def command(*arguments: object) -> None:
    parser = argparse.ArgumentParser()
    configure(parser)
    run(parser.parse_args([str(argument) for argument in arguments]))


def folder_of_two_classes(folder: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    for name, low in (("dark", 0), ("light", 155)):
        (folder / name).mkdir(parents=True)
        for index in range(10):
            pixels = torch.randint(low, low + 100, (16, 16, 3), generator=generator, dtype=torch.uint8)
            Image.fromarray(pixels.numpy()).save(folder / name / f"{index}.png")
    return folder


def test_a_folder_of_images_becomes_a_scored_generator(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, tokenizer, generator = folder_of_two_classes(tmp_path / "data"), tmp_path / "tok", tmp_path / "gen"
    command("digits-tokenizer", "--data", data, "--out", tokenizer, *TINY)
    command("digits-4x", "--data", data, "--tokenizer", tokenizer, "--out", generator, *TINY_GENERATOR)
    capsys.readouterr()
    command(
        "digits-4x",
        "--data",
        data,
        "--out",
        generator,
        *TINY_GENERATOR,
        "--evaluate",
        "--images",
        "8",
        "--seeds",
        "4",
        "--sampling-steps",
        "2",
    )
    scores = json.loads(capsys.readouterr().out)
    assert scores == json.loads((generator / "scores.json").read_text(encoding="utf-8"))
    assert (scores["images_per_seed"], scores["seeds"], scores["sampling"]["steps"]) == (8, [4], 2)
    assert load_generator(generator).config.class_names == ("dark", "light")
    assert json.loads((generator / "training.json").read_text(encoding="utf-8"))["steps"] == 4
    assert sorted(path.name for path in generator.iterdir()) == [
        "config.json",
        "curve.csv",
        "model.safetensors",
        "samples",
        "samples.png",
        "scores.json",
        "training.json",
    ]


def test_errors_say_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="--tokenizer FOLDER"):
        command("digits-4x", "--out", tmp_path / "new", *TINY)
    with pytest.raises(ModelError, match=r"no checkpoint at .*nowhere"):
        command("digits-4x", "--tokenizer", tmp_path / "nowhere", "--out", tmp_path / "new", *TINY)
    (tmp_path / "exported").mkdir()
    (tmp_path / "exported" / "bundle.json").touch()
    with pytest.raises(ModelError, match="it is a bundle: give the checkpoint that it was exported from"):
        command("--init", tmp_path / "exported", "--data", tmp_path, "--out", tmp_path / "new")
    assert not (tmp_path / "new").exists()
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(TrainingError, match="already holds a finished"):
        command("digits-tokenizer", "--out", tmp_path, *TINY)


def test_two_processes_train_one_model(tmp_path: Path) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    training = ["-m", "bitdance_edge", "train", "digits-tokenizer", "--out", str(tmp_path), *TINY]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launch, *training], env=environment, capture_output=True, text=True, check=True)
    report = json.loads(done.stdout)
    assert report == json.loads((tmp_path / "training.json").read_text(encoding="utf-8"))
    assert report["processes"] == 2


def test_help_does_not_load_torch() -> None:
    code = "import sys; import bitdance_edge.commands.train as m, argparse; m.configure(argparse.ArgumentParser())"
    subprocess.run([sys.executable, "-c", f"{code}; assert 'torch' not in sys.modules"], check=True)
