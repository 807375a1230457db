"""Two processes that train together: a run that is stopped, killed and resumed is that of one process."""

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from commanding import status_of
from safetensors.torch import load_file
from training_together import digests

from bitdance_edge.training import processes
from bitdance_edge.training.data import digits
from bitdance_edge.training.errors import TrainingError
from bitdance_edge.training.image_set import batch_rows

SCRIPT = Path(__file__).parents[1] / "training_together.py"
STEPS, BATCH, EVERY = 8, 8, 4
# Nothing random, and a loss that is the mean of the images': so the gradient of a batch is the mean of its halves'.
SETTINGS = {
    "bits": 4,
    "warmup_steps": 1,
    "flip_rate": 0,
    "entropy_weight": 0,
    "save_every": EVERY,
    "score_every": EVERY,
}
TRAIN = ["train", "digits-tokenizer", "--size", "16", "--steps", str(STEPS), "--batch-size", str(BATCH), "--no-augment"]
TRAIN += [text for name, value in SETTINGS.items() for text in ("--set", f"{name}={value}")]


def together(folder: Path, *runs: dict[str, object]) -> list[list[int]]:
    """Exit statuses of both processes of each run."""
    command = [sys.executable, str(SCRIPT), str(folder), json.dumps(runs)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "statuses.json").read_text(encoding="utf-8"))


def run(*arguments: object, number: int = 0, step: int = -1) -> dict[str, object]:
    return {"arguments": [*TRAIN, *map(str, arguments)], "signal": number, "step": step}


def curve(out: Path) -> list[list[float]]:
    """Step, loss, held-out score and learning rate of each score."""
    with (out / "curve.csv").open(encoding="utf-8", newline="") as file:
        return [[float(value) for value in row[:4]] for row in list(csv.reader(file))[1:]]


def images_by_step(folder: Path, rank: int) -> dict[int, list[str]]:
    """What one process saw in all runs; a resumed one sees again what came after the last saved state."""
    files = sorted(folder.glob(f"*-{rank}.images"))
    lines = [line.split() for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    return {int(step): images for step, *images in lines}


def test_two_processes_are_one_with_the_whole_batch(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    assert status_of(*TRAIN, "--out", one) == 0
    ended = together(
        tmp_path,
        run("--out", two, number=signal.SIGINT, step=2),  # which reaches the second process alone
        run("--out", two, "--resume", number=signal.SIGKILL, step=6),
        run("--out", two, "--resume"),
    )
    said = {file.name: file.read_text(encoding="utf-8") for file in tmp_path.glob("*.out")}
    assert ended == [[130, 130], [1, -signal.SIGKILL], [0, 0]], said
    assert "interrupted: the state is saved" in said["0-0.out"]
    assert "process 0 of 2 lost its connection to another one" in said["1-0.out"] and "Traceback" not in said["1-0.out"]
    assert (tmp_path / "2-0.images").read_text(encoding="utf-8").startswith("4 ")  # where the killed one had saved last
    assert said["2-1.out"] == ""  # one process writes

    report = json.loads((two / "training.json").read_text(encoding="utf-8"))
    assert report["processes"] == 2
    assert {path.name for path in two.iterdir()} == {path.name for path in one.iterdir()}
    assert curve(two)[-1] == pytest.approx(curve(one)[-1], rel=1e-4)
    weights, others = load_file(one / "model.safetensors"), load_file(two / "model.safetensors")
    # Weights move by up to 2e-3 a step, whatever the size of their gradient: where that is rounding noise, they differ.
    assert all((weight - others[name]).float().abs().mean() < 1e-3 for name, weight in weights.items())

    training = digits(16).split()[0]
    halves = [images_by_step(tmp_path, rank) for rank in range(2)]
    for step in range(STEPS):
        whole = digests(training[batch_rows(len(training), BATCH, step, seed=0)])
        assert [len(half[step]) for half in halves] == [BATCH // 2] * 2
        assert sorted(halves[0][step] + halves[1][step]) == sorted(whole)


def test_processes_that_cannot_be_connected_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: object) -> None:
        raise ValueError("environment variable MASTER_ADDR expected, but not set\n and more")

    monkeypatch.setattr(processes, "PartialState", fail)
    with pytest.raises(TrainingError, match=r"\(.*MASTER_ADDR expected, but not set\); start them with: accelerate"):
        processes.connect()
