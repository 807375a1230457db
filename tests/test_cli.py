"""The command line as a user meets it: exit status, one clear line, and nothing left behind."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from commanding import status_of
from PIL import Image
from places import FIXTURES
from tracing import reuse_graphs

from bitdance_edge.cli import COMMANDS
from bitdance_edge.runtime import Bundle, read_settings

CHECKPOINT = FIXTURES / "cc_4x_patch" / "state.safetensors"


def cli(*arguments: object, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bitdance_edge", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout)


def refused(*arguments: object) -> str:
    """The message of a command that must fail with one, without a traceback."""
    result = cli(*arguments)
    assert result.returncode in (1, 2), result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    return result.stderr


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_has_an_example_and_loads_no_torch(command: str) -> None:
    result = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "bitdance_edge", *command.split(), "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "bitdance-edge" in result.stdout
    assert "example" in result.stdout
    assert not any(line.endswith(" torch") for line in result.stderr.splitlines())


@pytest.mark.parametrize(("command", "given", "threads"), [
    ("generate", None, "1"), ("serve", None, "1"), ("generate", "3", "3"), ("evaluate", None, None),
])  # fmt: skip
def test_numpy_starts_no_threads_where_only_bundles_run(
    command: str, given: str | None, threads: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", given or "")
    if given is None:
        monkeypatch.delenv("OPENBLAS_NUM_THREADS")
    assert status_of(command, "nowhere") in (1, 2)
    assert os.environ.get("OPENBLAS_NUM_THREADS") == threads


def test_export_names_the_commands_that_come_next(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reuse_graphs(monkeypatch, bundle)
    out = tmp_path / "bundle"
    assert status_of("export", CHECKPOINT, "-o", out, "--no-fast-previews", "--window-patches", 1) == 0
    following = capsys.readouterr().err.split("Next:\n")[1]
    assert f"bitdance-edge build {out} --target cpu" in following
    assert f"bitdance-edge generate {out} --classes 0" in following


def test_generate_writes_labelled_images_a_grid_and_previews(bundle: Bundle, tmp_path: Path) -> None:
    arguments = ["--classes", "0-1,7", "--count", 2, "--seed", 1, "--steps", 1]
    outputs = ["--out", tmp_path / "images", "--grid", tmp_path / "grid.png", "--previews", tmp_path / "previews"]
    result = cli("generate", bundle.folder, *arguments, *outputs, "--preview-every", 8)
    assert result.returncode == 0, result.stderr
    assert files(tmp_path / "images") == {
        f"{i:04d}-{name}-seed{i + 1}.png" for i, name in enumerate(["0", "0", "1", "1", "7", "7"])
    }
    assert files(tmp_path / "previews") == {f"{i:04d}-patch008.png" for i in range(6)}
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.height > 3 * 64
    assert result.stdout.splitlines()[-1] == str(tmp_path / "grid.png")
    assert "seed 1" in result.stderr


def test_published_settings_and_the_other_sampler_from_the_command_line(bundle: Bundle, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    folder.symlink_to(bundle.folder)
    arguments = ["--classes", "4", "--seed", 2, "--published", "--sampler", "ode", "--guidance-schedule", "constant"]
    outputs = ["--out", tmp_path / "images", "--previews", tmp_path / "previews"]
    result = cli("generate", folder, *arguments, *outputs, "--preview-kind", "fast", "--preview-every", 10)
    assert result.returncode == 0, result.stderr
    settings = read_settings(tmp_path / "images" / "0000-4-seed2.png")
    assert (settings["steps"], settings["sampler"], settings["guidance_schedule"]) == (100, "ode", "constant")
    assert files(tmp_path / "previews") == {"0000-patch010.png"}
    shown = cli("inspect", folder).stdout
    assert "sampling    100 steps a patch (sde), guidance 4 (linear)" in shown
    assert "published   the same" in shown and "previews    full, fast" in shown


def test_like_takes_no_settings(bundle: Bundle) -> None:
    message = refused("generate", bundle.folder, "--like", "some.png", "--sampler", "ode", "--published")
    assert "omit --sampler, --published" in message


def test_an_image_is_made_again_from_its_png(bundle: Bundle, tmp_path: Path) -> None:
    assert cli("generate", bundle.folder, "--classes", 4, "--steps", 2, "--out", tmp_path / "a").returncode == 0
    (first,) = (tmp_path / "a").iterdir()
    assert cli("generate", bundle.folder, "--like", first, "--out", tmp_path / "b").returncode == 0
    (second,) = (tmp_path / "b").iterdir()
    assert first.read_bytes() == second.read_bytes()


def test_tokenize_reconstruct_and_complete(bundle: Bundle, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (50, 40, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "in.png")
    tokens = tmp_path / "tokens.npy"
    assert cli("tokenize", bundle.folder, tmp_path / "in.png", "-o", tokens).returncode == 0
    assert np.load(tokens).shape == (1, 64, 16)
    assert "PSNR" in cli("reconstruct", bundle.folder, tmp_path / "in.png", "-o", tmp_path / "out.png").stdout
    assert cli("reconstruct", bundle.folder, tokens, "-o", tmp_path / "decoded.png").returncode == 0
    with Image.open(tmp_path / "out.png") as one, Image.open(tmp_path / "decoded.png") as other:
        assert np.array_equal(np.asarray(one), np.asarray(other))
    for prefix in (tokens, tmp_path / "in.png"):
        completed = tmp_path / "completed.npy"
        options = ["--prefix", prefix, "--prefix-patches", 3, "--classes", 1, "--steps", 1, "--tokens", completed]
        assert cli("generate", bundle.folder, *options).returncode == 0
        assert np.array_equal(np.load(completed)[0, :12], np.load(tokens)[0, :12])


def test_inspect_lists_stages_errors_and_memory(bundle: Bundle) -> None:
    output = cli("inspect", bundle.folder, "--images", 4, "--verify").stdout
    for expected in (
        *bundle.stages,
        "memory of a GPU to generate 4 guided images",
        "total",
        "onnxruntime-cpu: yes",
        "all files of 11 stages",
        "checkpoint",
    ):
        assert expected in output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--classes", "12"], "class is 12; it must be a whole number from 0 to 9"),
        (["--classes", "cat"], "class 'cat' is unknown; give an id from 0 to 9"),
        (["--steps", "0"], "--steps: '0' is not a whole number from 1 to 1000"),
        (["--guidance", "nan"], "--guidance: 'nan' is not a number from 1 to 100"),
        (["--size", "64x64"], "this bundle makes 32x32 only"),
        (["--size", "big"], "'big' is not a size; write WIDTHxHEIGHT"),
        (["--seed", "-4"], "--seed: '-4' is not a whole number from 0 to"),
        (["--prefix", "nothing.npy"], "no tokens at nothing.npy"),
        (["--prefix-patches", "3"], "give --prefix too"),
        (["--device", "tpu"], "device is 'tpu'"),
        (["--max-batch", "0"], "--max-batch: '0' is not a whole number from 1"),
        (["--grid", "grid.jpg"], "grid.jpg does not end in .png"),
        (["--out", "out.JPG"], "--out out.JPG is a name of another format"),
        (["--tokens", "tokens.bin"], "tokens.bin does not end in .npy"),
        (["--tokens", "tokens.npy", "--grid", "grid.png"], "--tokens decodes nothing"),
        (["--preview-every", "2"], "give --previews FOLDER too"),
        (["--preview-kind", "fast", "--preview-share", "0.1"], "--preview-kind, --preview-share needs --previews"),
        (["--previews", "p", "--preview-kind", "quick"], "preview_kind is 'quick'; it must be one of full, fast"),
        (["--sampler", "euler"], "sampler is 'euler'; it must be one of sde, ode"),
    ],
)
def test_bad_request_is_one_line_and_writes_nothing(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in refused("generate", bundle.folder, "--classes", "0", *options)
    assert not files(tmp_path)


def test_outputs_that_cannot_be_written_are_refused_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "folder.png").mkdir()
    for output, message in (
        (("--out", tmp_path / "file" / "images"), f"{tmp_path / 'file'} is not a folder; choose another folder"),
        (("--previews", tmp_path / "file"), f"{tmp_path / 'file'} is not a folder; choose another folder"),
        (("--trace", "/proc/1/trace"), "cannot write /proc/1/trace"),
        (("--grid", tmp_path / "folder.png"), "is a folder; give the name of a file"),
        (("--tokens", tmp_path / ("x" * 300) / "a.npy"), "File name too long; choose another folder"),
        (("--out", ""), "--out: the path is empty"),
    ):
        assert status_of("generate", tmp_path / "no bundle is opened", "--classes", 0, *output) in (1, 2)
        assert message in capsys.readouterr().err
    assert files(tmp_path) == {"file", "folder.png"}


def test_missing_png(bundle: Bundle) -> None:
    assert "no image at nothing.png" in refused("generate", bundle.folder, "--like", "nothing.png")
    message = refused("generate", bundle.folder, "--like", "nothing.png", "--seed", 1, "--count", 2)
    assert "takes all settings from the PNG: omit --seed, --count" in message
    assert "--images: '0' is not a whole number from 1" in refused("inspect", bundle.folder, "--images", 0)


def test_trace_of_every_stage(bundle: Bundle, tmp_path: Path) -> None:
    arguments = ["--classes", 1, "--steps", 2, "--out", tmp_path / "images", "--trace", tmp_path / "trace"]
    result = cli("generate", bundle.folder, *arguments)
    assert "head             48 launches" in result.stderr
    stages = {name.split("_")[0] for name in files(tmp_path / "trace")}
    assert stages == {"prompt", "tokens", "time", "backbone", "modulation", "head", "decoder"}
    for trace in (tmp_path / "trace").iterdir():
        assert json.loads(trace.read_text())


def test_png_of_another_bundle_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    assert cli("generate", bundle.folder, "--classes", 0, "--steps", 1, "--out", tmp_path / "a").returncode == 0
    other = Path(shutil.copytree(bundle.folder, tmp_path / "other"))
    manifest = json.loads((other / "bundle.json").read_text())
    (other / "bundle.json").write_text(json.dumps({**manifest, "name": "other"}))
    (image,) = (tmp_path / "a").iterdir()
    assert "made by another bundle" in refused("generate", other, "--like", image)


def test_export_refuses_what_it_cannot_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(*arguments: object) -> str:
        """In this process, which loads PyTorch once."""
        assert status_of("export", *arguments) in (1, 2)
        return capsys.readouterr().err

    out = tmp_path / "bundle"
    assert "no checkpoint at" in refused(tmp_path / "nothing", "-o", out)
    assert "one of 24, 20" in refused(CHECKPOINT, "-o", out, "--opset", 25)
    assert "one of fp32, fp16, bf16" in refused(CHECKPOINT, "-o", out, "--dtype", "int3")
    assert "does not match its configuration" in refused(CHECKPOINT, "-o", out, "--variant", "B-4x")
    assert "--sizes has no effect" in refused(CHECKPOINT, "-o", out, "--sizes", "64x64")
    text = FIXTURES / "t2i_16x_swiglu"
    assert "--variant has no effect" in refused(text, "-o", out, "--variant", "B-4x")
    assert "--max-prompt: '0' is not a whole number from 1" in refused(text, "-o", out, "--max-prompt", 0)
    assert "'64' is not a size; write WIDTHxHEIGHT" in refused(text, "-o", out, "--sizes", 64)
    out.mkdir()
    assert "--force" in refused(CHECKPOINT, "-o", out)
    assert "is not a bundle" in refused(CHECKPOINT, "-o", out, "--force")
    assert files(tmp_path) == {"bundle"}


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Path]:
    """A disk of 2.56 MB, room for the weights of the checkpoint but not for the whole bundle."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2500k", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_full_disk_leaves_nothing(
    bundle: Bundle, tmpfs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reuse_graphs(monkeypatch, bundle)
    assert status_of("export", CHECKPOINT, "-o", tmpfs / "bundle") == 1
    assert "No space left on device" in capsys.readouterr().err
    assert not files(tmpfs)
    (tmpfs / "filler").write_bytes(b"x" * (shutil.disk_usage(tmpfs).free - 1000))
    message = refused("generate", bundle.folder, "--classes", 0, "--steps", 1, "--grid", tmpfs / "grid.png")
    assert "No space left on device" in message
    assert status_of("export", CHECKPOINT, "-o", tmpfs / "bundle") == 1
    assert "MB free" in capsys.readouterr().err
    assert files(tmpfs) == {"filler"}


def test_a_disk_that_fills_keeps_what_is_whole(bundle: Bundle, tmpfs: Path, tmp_path: Path) -> None:
    (tmpfs / "filler").write_bytes(b"x" * (shutil.disk_usage(tmpfs).free - 30_000))
    request = ["generate", bundle.folder, "--classes", "all", "--steps", 1, "--max-batch", 1]
    message = refused(*request, "--out", tmpfs / "images")
    assert "No space left on device; free some space" in message
    kept = files(tmpfs / "images")
    assert kept and f"{len(kept)} of 10 images are written" in message
    for name in kept:
        with Image.open(tmpfs / "images" / name) as image:
            image.load()
    shutil.rmtree(tmpfs / "images")
    message = refused(*request, "--out", tmp_path / "images", "--trace", tmpfs / "trace")
    assert "is cut short: free some space on that disk" in message
    assert len(files(tmp_path / "images")) == 10


def test_training_on_a_full_or_unwritable_disk_is_one_line(tmpfs: Path) -> None:
    arguments = ["train", "digits-tokenizer", "--size", 16, "--batch-size", 4, "--steps", 2, "--set", "warmup_steps=1"]
    (tmpfs / "filler").write_bytes(b"x" * (shutil.disk_usage(tmpfs).free - 9000))
    assert "cannot write" in refused(*arguments, "--set", "save_every=1", "--out", tmpfs / "run")
    assert "cannot write" in refused(*arguments, "--out", tmpfs / "other")
    assert files(tmpfs) == {"filler", "other", "other/curve.csv", "other/samples"}
    assert "Not a directory" in refused(*arguments, "--out", tmpfs / "filler" / "run")


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_export_leaves_nothing(tmp_path: Path, stop: signal.Signals) -> None:
    status, message = interrupt(["export", CHECKPOINT, "-o", tmp_path / "bundle"], tmp_path, stop)
    assert status == 130, message
    assert "interrupted" in message
    assert "Traceback" not in message
    assert not files(tmp_path)


def test_interrupted_generate_keeps_every_finished_image(bundle: Bundle, tmp_path: Path) -> None:
    """The grid is of those that are finished, and no file is half written."""
    outputs = ["--out", tmp_path / "images", "--grid", tmp_path / "grid.png", "--previews", tmp_path / "previews"]
    arguments = ["generate", bundle.folder, "--classes", "all", "--count", 500, "--steps", 2, "--max-batch", 1]
    arguments += [*outputs, "--preview-every", 1, "--preview-kind", "fast"]
    status, message = interrupt(arguments, tmp_path / "images", signal.SIGINT, wrote="[!.]*.png")  # in place
    assert status == 130, message
    assert "Traceback" not in message
    written = len(files(tmp_path / "images"))
    said = [f"interrupted: {number} of 5000 images are written" for number in (written, written - 1)]
    assert written and any(line in message for line in said)  # one less: interrupted after a file, before it counted
    for path in tmp_path.rglob("*.png"):
        with Image.open(path) as image:
            image.load()
    assert {path.suffix for path in tmp_path.rglob("*.*")} == {".png"} and (tmp_path / "grid.png").exists()


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_training_saves_its_state_and_says_how_to_go_on(tmp_path: Path, stop: signal.Signals) -> None:
    arguments = [
        "train",
        "digits-tokenizer",
        "--size",
        16,
        "--batch-size",
        4,
        "--steps",
        5000,
        "--out",
        tmp_path / "run",
    ]
    status, message = interrupt(arguments, tmp_path, stop, said="step/s")
    assert status == 130, message
    assert "repeat the command with --resume to continue" in message
    assert "Traceback" not in message
    assert files(tmp_path) == {"run", "run/resume.pt"}
    message = refused(*arguments)
    assert "--resume" in message


def interrupt(arguments: list, folder: Path, stop: signal.Signals, said: str = "", wrote: str = "*") -> tuple[int, str]:
    """Run a command, stop it once it ``wrote`` something into ``folder`` and ``said`` a text; its status and errors."""
    command = [sys.executable, "-m", "bitdance_edge", *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not any(folder.rglob(wrote)) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert process.stderr is not None
    before = ""
    while said not in before and process.poll() is None:
        before += process.stderr.read(1)
    process.send_signal(stop)
    try:
        _, message = process.communicate(timeout=60)
    finally:
        process.kill()
    # Python ends itself with SIGINT, which a shell shows as 130 too, where the interrupt passed through an exec().
    return 130 if process.returncode == -signal.SIGINT else process.returncode, message
