"""What users expect of any command line: completion, quiet, files in place of folders, prompts from a file, JSON."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from bitdance_edge import installation
from bitdance_edge.cli import COMMANDS, main
from bitdance_edge.errors import BitDanceError, plain
from bitdance_edge.installation import as_typed
from bitdance_edge.runtime import Bundle
from bitdance_edge.runtime.bundle.pack import pack_bundle


def test_completion_knows_commands_options_and_files(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--print-completion", "bash"]) == 0
    script = capsys.readouterr().out
    assert all(name in script for name in (*COMMANDS, "--prompts-file", "--max-bit-flips", "compgen"))
    done = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr


def test_without_a_command_or_shtab_it_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["--print-completion", "zsh"]) == 1
    assert "[completion]'" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main([])
    assert "name a command first" in capsys.readouterr().err


def test_quiet_prints_results_and_errors_only(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["generate", str(bundle.folder), "--steps", "1", "--out", str(tmp_path / "one.png"), "--quiet"]
    assert main([*arguments, "--classes", "3"]) == 0
    said = capsys.readouterr()
    assert (said.out, said.err) == (f"{tmp_path / 'one.png'}\n", "")
    assert main([*arguments, "--classes", "3,4"]) == 1
    assert "is one file, and 2 images are asked for" in capsys.readouterr().err
    with Image.open(tmp_path / "one.png") as image:
        assert image.size == (32, 32)


def test_prompts_of_a_file(word_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts, out = tmp_path / "prompts.txt", tmp_path / "images"
    prompts.write_bytes("\ufeffa red fish\r\n\r\n  fish \n".encode())
    arguments = ["generate", str(word_bundle.folder), "--size", "64x64", "--steps", "1", "--seed", "1"]
    assert main([*arguments, "--prompts-file", str(prompts), "--out", str(out)]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["0000-a_red_fish-seed1.png", "0001-fish-seed2.png"]
    capsys.readouterr()
    for content, said in ((b" \n", "holds no prompt"), (b"\xff\xfe", "is not UTF-8")):
        prompts.write_bytes(content)
        with pytest.raises(SystemExit, match="2"):
            main([*arguments, "--prompts-file", str(prompts)])
        assert said in capsys.readouterr().err


def test_inspect_for_programs(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(bundle.folder), "--json", "--images", "2"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["model"]["tokens_per_step"] == 4 and found["memory"]["images"] == 2
    assert found["backends"]["onnxruntime-cpu"].startswith("yes") and found["built"] == []


def test_inspect_refuses_what_has_no_effect(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(bundle.folder), "--json", "--memory", "16GB"]) == 1
    assert "omit one of them" in capsys.readouterr().err
    assert main(["inspect", "targets/cpu/head.onnx", "--json", "--verify"]) == 1
    assert "--json, --verify is about bundles" in capsys.readouterr().err


def test_a_packed_bundle_is_a_bundle(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BITDANCE_EDGE_CACHE", str(tmp_path / "cache"))
    archive = tmp_path / "small.tar"
    pack_bundle(bundle, archive, None, False)
    opened = Bundle.open(archive)
    assert opened.digest == bundle.digest and opened.folder.is_relative_to(tmp_path / "cache")
    before = opened.folder.stat().st_ino
    assert Bundle.open(archive).folder.stat().st_ino == before  # unpacked once
    assert main(["inspect", str(archive)]) == 0
    for content, said in ((archive.read_bytes()[:5000], "copy it again"), (b"no archive", "not a packed bundle")):
        (tmp_path / "broken.tar").write_bytes(content)
        capsys.readouterr()
        assert main(["inspect", str(tmp_path / "broken.tar")]) == 1
        assert said in capsys.readouterr().err
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_hints_work_from_where_the_user_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hint = "make one with: bitdance-edge export X -o Y; first: pip install 'bitdance-edge[cpu,export]'"
    checkout = tmp_path / "clone"
    checkout.mkdir()
    monkeypatch.setattr(installation, "_installed_from", lambda: checkout)
    monkeypatch.setattr(installation, "_is_on_path", lambda _: True)
    monkeypatch.chdir(checkout)
    assert as_typed(hint) == hint.replace("'bitdance-edge[", "'.[")
    monkeypatch.chdir(tmp_path)
    assert as_typed(hint).endswith(f"pip install '.{'/clone'}[cpu,export]'")
    shutil.rmtree(checkout)
    assert as_typed(hint) == hint  # from the index
    monkeypatch.setattr(installation, "_is_on_path", lambda _: False)
    assert "bitdance-edge export" in as_typed(hint) and " -m pip install " in as_typed(hint)
    assert not as_typed(hint).startswith("make one with: bitdance-edge")
    assert as_typed("bitdance-edge inspect: no bundle") == "bitdance-edge inspect: no bundle"  # its own name


def test_what_a_server_says_has_no_path_of_its_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    error = BitDanceError("make one with: bitdance-edge export X -o Y")
    assert plain(error) == "make one with: bitdance-edge export X -o Y" != str(error)
