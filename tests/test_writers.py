"""Every command that writes: one writer of an output at a time, and on a full disk one line and nothing left behind."""

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pytest
from commanding import EXPORTED_ONLY
from PIL import Image
from places import FIXTURES

from bitdance_edge.cli import main
from bitdance_edge.runtime import Bundle, read_settings
from bitdance_edge.storage import claimed

CHECKPOINT = FIXTURES / "cc_4x_patch" / "state.safetensors"
ROOM = 150  # bytes that a file may have where the disk is full
TRAIN = ["digits-tokenizer", "--size", "16", "--batch-size", "4", "--steps", "2", "--set", "warmup_steps=1"]
# Command -> its arguments, what it writes, and where its claim on that is; {bundle} and {out} are filled in.
WRITERS: dict[str, tuple[list[str], str, str]] = {
    "export": ([str(CHECKPOINT), "-o", "{out}", *EXPORTED_ONLY], "{out}", "{folder}"),
    "calibrate": (["{bundle}", "--precision", "int8", "-o", "{out}", "--images", "1"], "{out}", "{folder}"),
    "build": (["{bundle}", "--target", "cpu"], "{bundle}/targets/cpu", "{bundle}"),
    "pack": (["{bundle}", "-o", "{out}.tar"], "{out}.tar", "{folder}"),
    "bench": (["{bundle}", "--checkpoint", str(CHECKPOINT), "-o", "{out}"], "{out}", "{out}"),
    "train": ([*TRAIN, "--out", "{out}"], "{out}", "{out}"),
}
MADE = ["{bundle}", "--classes", "1", "--steps", "1", "--seed", "1"]
Filled = Callable[[str], str]


@pytest.fixture
def copied(bundle: Bundle, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle.folder, tmp_path / "bundle"))


@pytest.fixture
def filled(copied: Path, tmp_path: Path) -> Filled:
    """Fills in the paths of a test."""
    return lambda text: text.format(bundle=copied, out=tmp_path / "out", folder=tmp_path)


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("command", WRITERS)
def test_the_second_writer_of_an_output_is_refused(
    command: str, filled: Filled, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, output, lock_in = WRITERS[command]
    before = files(tmp_path)
    with claimed(Path(filled(output)), Path(filled(lock_in))):
        assert main([command, *map(filled, arguments)]) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith(f"bitdance-edge {command}: another process is writing {filled(output)}; wait until")
    assert files(tmp_path) == before


# What makes images and tokens -> its arguments, an output, and where its claim on that is; {made} is what is read.
IMAGE_WRITERS: dict[str, tuple[list[str], str, str]] = {
    "generate folder": ([*MADE, "--out", "{out}"], "{out}", "{out}"),
    "generate file": ([*MADE, "--out", "{out}.png"], "{out}.png", "{folder}"),
    "generate grid": ([*MADE, "--grid", "{out}.png"], "{out}.png", "{folder}"),
    "generate tokens": ([*MADE, "--tokens", "{out}.npy"], "{out}.npy", "{folder}"),
    "generate previews": ([*MADE, "--grid", "{folder}/g.png", "--previews", "{out}"], "{out}", "{out}"),
    "tokenize file": (["{bundle}", "{folder}/made.png", "-o", "{out}.npy"], "{out}.npy", "{folder}"),
    "decode folder": (["{bundle}", "{folder}/made.npy", "-o", "{out}"], "{out}", "{out}"),
    "decode file": (["{bundle}", "{folder}/made.npy", "-o", "{out}.png"], "{out}.png", "{folder}"),
    "reconstruct file": (["{bundle}", "{folder}/made.png", "-o", "{out}.png"], "{out}.png", "{folder}"),
    "reconstruct folder": (["{bundle}", "{folder}/made", "-o", "{out}"], "{out}", "{out}"),
    "reconstruct report": (["{bundle}", "{folder}/made", "--report", "{out}.json"], "{out}.json", "{folder}"),
}


@pytest.mark.parametrize("what", IMAGE_WRITERS)
def test_the_second_writer_of_images_is_refused_and_leaves_nothing(
    what: str, bundle: Bundle, filled: Filled, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made(bundle, tmp_path)
    command, (arguments, output, lock_in) = what.split()[0], IMAGE_WRITERS[what]
    before = set(tmp_path.rglob("*"))
    with claimed(Path(filled(output)), Path(filled(lock_in))):
        assert main([command, *map(filled, arguments)]) == 1
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert said.startswith(f"bitdance-edge {command}: another process is writing {filled(output)}; wait until")
    if output == lock_in:
        Path(filled(output)).rmdir()  # which the claim made
    assert set(tmp_path.rglob("*")) == before
    assert main([command, *map(filled, arguments)]) == 0
    assert not list(tmp_path.rglob(".writing-*"))


def made(bundle: Bundle, folder: Path) -> None:
    """Write what ``IMAGE_WRITERS`` read: a picture, a folder of it, and tokens of an image."""
    size = bundle.model.default_size
    (folder / "made").mkdir()
    for path in (folder / "made.png", folder / "made" / "one.png"):
        Image.new("RGB", (size.width, size.height), (9, 99, 200)).save(path)
    np.save(folder / "made.npy", np.ones((1, size.tokens, bundle.model.bits), np.int8))


def test_of_two_that_generate_at_the_same_time_one_succeeds_or_both_images_are_whole(
    bundle: Bundle, tmp_path: Path
) -> None:
    request = ["--classes", "1", "--count", "4", "--out", tmp_path / "out", "--steps"]
    command = [sys.executable, "-m", "bitdance_edge", "generate", bundle.folder, "--seed", "1", *request]
    both = [subprocess.Popen([*command, n], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) for n in ("9", "8")]
    said = [process.communicate(timeout=60)[1].decode() for process in both]
    done = [steps for steps, process in zip((9, 8), both, strict=True) if process.returncode == 0]
    assert done and ("another process is writing" in "".join(said) or len(done) == 2), said
    found = {read_settings(path)["steps"] for path in (tmp_path / "out").iterdir()}
    assert len(found) == 1 and found <= set(done)


def test_of_two_that_pack_at_the_same_time_one_succeeds(copied: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bitdance_edge", "pack", copied, "-o", tmp_path / "a.tar"]
    both = [subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) for _ in range(2)]
    said = [process.communicate(timeout=60)[1].decode() for process in both]
    assert sorted(process.returncode for process in both) == [0, 1], said
    assert any(reason in "".join(said) for reason in ("another process is writing", "exists; write to another file"))
    assert main(["pack", str(copied), "-o", str(tmp_path / "a.tar"), "--force"]) == 0


@contextmanager
def full_disk() -> Iterator[None]:
    """Let no file of this process grow beyond a few bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (ROOM, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("command", WRITERS)
def test_a_full_disk_is_one_line_and_nothing_is_left(
    command: str, filled: Filled, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, _, _ = WRITERS[command]
    before = files(tmp_path)
    with full_disk():
        status = main([command, *map(filled, arguments)])
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert status == 1
    assert "cannot write" in said
    assert command == "build" or "File too large" in said  # ONNX Runtime does not say why
    small = {"out/curve.csv"} if command == "train" else set()  # a table of one row is whole
    assert files(tmp_path) - before == small


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    command = [mount or "mount", "-t", "tmpfs", "-o", "size=32m", "none", str(folder)]
    if mount is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no tmpfs can be mounted here: run as root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(disk: Path, room: int) -> None:
    """Leave so many pages of a disk free."""
    free = os.statvfs(disk)
    (disk / "filler").write_bytes(bytes((free.f_bavail - room) * free.f_frsize))


SEEDED = ["--seed", "1", "--steps", "1"]
PAGES = 8  # that are left for commands that write much
# Command -> its arguments, and the pages that are left; {bundle} and {out} are on the disk, {here} is beside it.
TIGHT: dict[str, tuple[list[str], int]] = {
    **{command: (WRITERS[command][0], PAGES) for command in ("export", "calibrate", "build", "pack", "bench")},
    "generate": (["{here}", "--classes", "1", "--count", "3", "--out", "{out}", *SEEDED], 2),
    "generate --grid": (["{here}", "--classes", "1", "--grid", "{out}.png", *SEEDED], 0),
    "generate --previews": (["{here}", "--classes", "1", "--out", "{free}", "--previews", "{out}", *SEEDED], 2),
    "generate --trace": (["{here}", "--classes", "1", "--out", "{free}", "--trace", "{out}", *SEEDED], 1),
    "tokenize": (["{here}", "{picture}", "-o", "{out}.npy"], 0),
    "decode": (["{here}", "{tokens}", "-o", "{out}"], 0),
    "reconstruct": (["{here}", "{picture}", "-o", "{out}.png"], 0),
}
FULL = ("No space left on device", "disk has 0 MB free", "is cut short: free some space")
# Images that are done, what the same command goes on from, and the trace that the error names.
KEPT = {
    "generate": "out/*.png",
    "generate --previews": "out/*.png",
    "generate --trace": "out/*.json",
    "calibrate": "bundle/calibration/recordings/*",
    "bench": "out/*",
}


@pytest.mark.parametrize("command", TIGHT)
def test_a_full_file_system_is_one_line_and_what_is_there_is_whole(
    command: str, bundle: Bundle, disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, room = TIGHT[command]
    paths = {"bundle": disk / "bundle", "out": disk / "out", "here": bundle.folder, "free": tmp_path / "free"}
    paths |= {name: tmp_path / file for name, file in (("picture", "picture.png"), ("tokens", "tokens.npy"))}
    size = bundle.model.default_size
    Image.new("RGB", (size.width, size.height), (9, 99, 200)).save(paths["picture"])
    np.save(paths["tokens"], np.ones((1, size.tokens, bundle.model.bits), np.int8))
    shutil.copytree(bundle.folder, paths["bundle"])
    fill(disk, room)
    before = files(disk)
    status = main([*command.split()[:1], *(text.format(**paths) for text in arguments)])
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert status == 1 and "Traceback" not in said
    assert any(reason in said for reason in FULL) or command == "build", said  # ONNX Runtime does not say why
    for name in files(disk) - before:
        assert command in KEPT and fnmatch(name, KEPT[command]), name
        if name.endswith(".png"):
            Image.open(disk / name).load()
        elif name.endswith(".npz"):
            dict(np.load(disk / name))
        elif command == "bench":
            json.loads((disk / name).read_text(encoding="utf-8"))
