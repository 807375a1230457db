"""A command whose output nobody reads ends without a word, as other programs do; one that cannot write it says so."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from bitdance_edge.runtime import Bundle
from bitdance_edge.streams import BROKEN_PIPE

COMMAND = [sys.executable, "-m", "bitdance_edge"]


@pytest.fixture(params=["buffered", "unbuffered"])
def environment(request: pytest.FixtureRequest) -> dict[str, str]:
    return {**os.environ, "PYTHONUNBUFFERED": "1" if request.param == "unbuffered" else ""}


def unread(arguments: list[str], environment: dict[str, str], *, errors: bool = False) -> tuple[int, str]:
    """Status and standard error of a command whose output, and errors too if asked for, has no reader."""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as gone:
        where = gone if errors else subprocess.PIPE
        done = subprocess.run([*COMMAND, *arguments], stdout=gone, stderr=where, env=environment, timeout=60)
    return done.returncode, (done.stderr or b"").decode()


def test_a_reader_that_left_ends_the_command_quietly(bundle: Bundle, environment: dict[str, str]) -> None:
    assert unread(["inspect", str(bundle.folder), "--json"], environment) == (BROKEN_PIPE, "")


def test_images_that_are_done_are_written(bundle: Bundle, environment: dict[str, str], tmp_path: Path) -> None:
    asked = ["generate", str(bundle.folder), "--classes", "1", "--steps", "1", "--max-batch", "1", "--seed", "1"]
    status, said = unread([*asked, "--count", "2", "--out", str(tmp_path), "--quiet"], environment)
    assert (status, said) == (BROKEN_PIPE, "")
    assert [path.suffix for path in tmp_path.iterdir()] == [".png"]
    assert unread([*asked, "--out", str(tmp_path)], environment, errors=True) == (BROKEN_PIPE, "")


def test_an_error_keeps_its_status_and_its_line(bundle: Bundle, environment: dict[str, str]) -> None:
    status, said = unread(["generate", str(bundle.folder), "--classes", "none"], environment)
    assert status == 1 and "class 'none' is unknown" in said


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_an_output_that_cannot_be_written_is_one_line(bundle: Bundle, environment: dict[str, str]) -> None:
    with Path("/dev/full").open("wb") as full:
        command = [*COMMAND, "inspect", str(bundle.folder), "--json"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, env=environment, text=True, timeout=60)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "output: No space left on device" in line


def with_closed(streams: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a command without some of its standard streams."""
    command = ["sh", "-c", f'exec "$@" {streams}', "sh", *COMMAND, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_a_closed_output_is_none(bundle: Bundle) -> None:
    done = with_closed(">&-", "inspect", bundle.folder)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("streams", ["2>&-", "<&- >&- 2>&-"])
def test_images_are_made_without_standard_streams(bundle: Bundle, tmp_path: Path, streams: str) -> None:
    asked = ("--classes", "1", "--steps", "1", "--seed", "1", "--out", tmp_path / "one.png")
    done = with_closed(streams, "generate", bundle.folder, *asked)
    assert (done.returncode, done.stderr) == (0, "")
    Image.open(tmp_path / "one.png").load()


def test_prompts_of_a_closed_input_are_none(bundle: Bundle) -> None:
    done = with_closed("<&-", "generate", bundle.folder, "--prompts-file", "-")
    assert done.returncode == 2 and "'-' holds no prompt" in done.stderr and done.stderr.count("\n") == 1


def test_prompts_of_an_input_that_does_not_end_are_refused(bundle: Bundle) -> None:
    command = [*COMMAND, "generate", str(bundle.folder), "--prompts-file", "-"]
    with Path("/dev/zero").open("rb") as endless:
        done = subprocess.run(command, stdin=endless, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "more than 16,777,216 bytes" in done.stderr
