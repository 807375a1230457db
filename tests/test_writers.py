"""Every command that writes: one writer of an output at a time, and on a full disk one line and nothing left behind."""

import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from places import FIXTURES

from bitdance_edge.cli import main
from bitdance_edge.runtime import Bundle
from bitdance_edge.storage import claimed

CHECKPOINT = FIXTURES / "cc_4x_patch" / "state.safetensors"
ROOM = 150  # bytes that a file may have where the disk is full
TRAIN = ["digits-tokenizer", "--size", "16", "--batch-size", "4", "--steps", "2", "--set", "warmup_steps=1"]
# Command -> its arguments, what it writes, and where its claim on that is; {bundle} and {out} are filled in.
WRITERS: dict[str, tuple[list[str], str, str]] = {
    "export": ([str(CHECKPOINT), "-o", "{out}", "--no-fast-previews"], "{out}", "{folder}"),
    "calibrate": (["{bundle}", "--precision", "int8", "-o", "{out}", "--images", "1"], "{out}", "{folder}"),
    "build": (["{bundle}", "--target", "cpu"], "{bundle}/targets/cpu", "{bundle}"),
    "pack": (["{bundle}", "-o", "{out}.tar"], "{out}.tar", "{folder}"),
    "bench": (["{bundle}", "--checkpoint", str(CHECKPOINT), "-o", "{out}"], "{out}", "{out}"),
    "train": ([*TRAIN, "--out", "{out}"], "{out}", "{out}"),
}
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
    assert files(tmp_path) == before
