"""Names that are no text, or not in the terminal's encoding, are printed and written; text files are UTF-8."""

import argparse
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from commanding import status_of
from PIL import Image

from bitdance_edge.commands import values
from bitdance_edge.runtime import Bundle, RequestError
from bitdance_edge.runtime.reading import read_text

LOCALES = {
    "UTF-8": {"PYTHONUTF8": "1"},
    "C": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "Latin-1 output": {"PYTHONUTF8": "1", "PYTHONIOENCODING": "latin-1:strict"},
}


@pytest.mark.parametrize("locale", LOCALES)
def test_any_file_name_is_written_and_printed(bundle: Bundle, tmp_path: Path, locale: str) -> None:
    """A name in Latin-1, and one that Latin-1 does not have."""
    folder = os.fsencode(tmp_path)
    names = {b"caf\xe9.png": b"caf\xe9.png", "日本.png".encode(): None}
    Image.new("RGB", (32, 32)).save(tmp_path / "in.png")
    for name, shown in names.items():
        command = [sys.executable, "-m", "bitdance_edge", "reconstruct", bundle.folder, tmp_path / "in.png", "-o"]
        environment = {**os.environ, **LOCALES[locale]}
        result = subprocess.run([*command, folder + b"/" + name], capture_output=True, env=environment)
        assert result.returncode == 0, result.stderr
        assert (folder + b"/" + name) in set(map(os.fsencode, tmp_path.iterdir()))
        assert result.stdout.startswith(folder)
        assert shown is None or shown in result.stdout


@pytest.mark.parametrize("locale", ["C"])
def test_undecodable_arguments_are_refused_in_one_line(bundle: Bundle, tmp_path: Path, locale: str) -> None:
    for arguments in (
        [b"--prompt", b"caf\xe9"],
        [b"--classes", b"\xff"],
        [b"--classes=0", b"--negative-prompt", b"\xe9"],
    ):
        command = [sys.executable, "-m", "bitdance_edge", "generate", bundle.folder, *arguments]
        result = subprocess.run(command, capture_output=True, env={**os.environ, **LOCALES[locale]}, cwd=tmp_path)
        assert result.returncode == 2 and result.stderr.count(b"\n") == 1, result.stderr
        assert b"no text in this locale" in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a\nb", "\x1b[2J", "\u009b31m", "\u2028", "\u202e", "x" * 3000, "x/" * 3000])
def test_an_error_is_one_safe_line_whatever_a_name_has(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["inspect", name], ["generate", name, "--classes", "1"], ["generate", "b", f"--like={name}"]):
        assert status_of(*arguments) in (1, 2)
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and error[:-1].isprintable() and len(error) < 2100


def test_what_a_bundle_says_of_itself_is_printed_safely(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    replace(bundle, folder=tmp_path, links={}, provenance={"exporter": "\x1b[2Jx\ny"}).write()
    assert status_of("inspect", tmp_path) == 0
    assert "\\x1b[2Jx\\ny" in capsys.readouterr().out


def test_each_reconstruction_has_a_name_of_its_own(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    Image.new("RGB", (32, 32)).save(pictures / "a.png")
    before = (pictures / "a.png").read_bytes()
    assert status_of("reconstruct", bundle.folder, pictures, "-o", pictures) == 1
    assert "a.png would be replaced by its reconstruction" in capsys.readouterr().err
    assert (pictures / "a.png").read_bytes() == before
    Image.new("RGB", (32, 32)).save(pictures / "a.bmp")
    assert status_of("reconstruct", bundle.folder, pictures, "-o", tmp_path / "made") == 1
    assert "a.bmp and" in (said := capsys.readouterr().err) and "would both become" in said
    assert not (tmp_path / "made").exists()


def test_a_command_runs_in_a_folder_that_was_removed(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    command = f'cd here && rmdir ../here && exec "{sys.executable}" -m bitdance_edge inspect'
    bare = {**os.environ, "PATH": os.defpath}  # so that messages show the program by its path
    for path, status, said in ((bundle.folder, 0, ""), (tmp_path / "none", 1, "make one with: ")):
        done = subprocess.run(["sh", "-c", f"{command} {path}"], cwd=tmp_path, env=bare, capture_output=True, text=True)
        assert done.returncode == status and said in done.stderr, done.stderr
        (tmp_path / "here").mkdir()


def test_a_byte_order_mark_is_not_text_and_other_encodings_are_named(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes(b"\xef\xbb\xbfein r\xc3\xb6tlicher Kreis\r\n")
    assert read_text(path, "file").splitlines() == ["ein rötlicher Kreis"]
    for content, place in (
        (b"a circle\nein r\xf6tlicher Kreis\n", "byte 0xf6 in line 2 [(]offset 14[)]"),
        ("a circle".encode("utf-16"), "byte 0xff in line 1 [(]offset 0[)]"),
        (b"\xed\xa0\x80", "byte 0xed in line 1"),  # a surrogate
    ):
        path.write_bytes(content)
        with pytest.raises(RequestError, match=place):
            read_text(path, "file")
        with pytest.raises(argparse.ArgumentTypeError, match=place):
            values.prompt_file(str(path))


def test_a_file_of_prompts_is_a_regular_file_of_text(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes(b"\xef\xbb\xbfa red circle\r\n\n  a blue square\n")
    assert values.prompt_file(str(path)) == ["a red circle", "a blue square"]
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty").touch()
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(2**40)
    for value, message in (
        (tmp_path / "none", "no file of prompts at"),
        (tmp_path, "is a folder"),
        (tmp_path / "pipe", "is a pipe"),
        (tmp_path / "empty", "holds no prompt"),
        (tmp_path / "huge", "the limit is 16,777,216"),
        ("/dev/zero", "is a pipe, device"),
        ("", "the path is empty"),
    ):
        with pytest.raises(argparse.ArgumentTypeError, match=message):
            values.prompt_file(str(value))
