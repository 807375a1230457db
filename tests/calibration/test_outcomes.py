"""What cannot be calibrated has a clear outcome, before any work where that is possible, and leaves nothing behind."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from calibrating import OPTIONS, Calibrated, altered, options
from commanding import status_of
from onnx import load, save

from bitdance_edge.calibration.calibrate import calibrate
from bitdance_edge.calibration.errors import CalibrationError
from bitdance_edge.calibration.judge import Judge, JudgeOptions
from bitdance_edge.calibration.recipe import CalibrationRecipe
from bitdance_edge.cli import main
from bitdance_edge.evaluation.errors import EvaluationError
from bitdance_edge.runtime import Bundle, Size
from bitdance_edge.runtime.bundle.manifest import file_spec
from bitdance_edge.runtime.errors import StorageError

Digits = Callable[[str], Bundle]


def test_activations_that_are_not_finite_name_the_module(bundle: Bundle, tmp_path: Path) -> None:
    spoilt = altered(bundle, tmp_path / "spoilt", "backbone", "backbone.norm.weight", lambda w: np.full_like(w, np.inf))
    message = r"backbone makes values that are NaN or infinite, the first in backbone\.norm: "
    with pytest.raises(CalibrationError, match=message):
        calibrate(spoilt, tmp_path / "out", replace(options("int8", ["backbone"], weigh_times=False), held_out=1))
    assert not (tmp_path / "out").exists()


def test_a_layer_that_only_sees_zeros_stays_as_exported(bundle: Bundle, tmp_path: Path) -> None:
    silent = altered(bundle, tmp_path / "silent", "backbone", "backbone.layers.0.ffn_norm.weight", np.zeros_like)
    found = calibrate(silent, tmp_path / "out", options("int8", ["backbone"]))
    zeros = {name for name, reason in found.chosen.left.items() if "were 0" in reason}
    assert zeros == {f"backbone:backbone.layers.0.feed_forward.{name}" for name in ("w1", "w2")}
    assert zeros.isdisjoint(found.chosen.formats)
    assert "no scale can be chosen" in (tmp_path / "out" / "calibration" / "report.md").read_text(encoding="utf-8")
    assert np.isfinite(found.losses.bits.free)


def test_an_empty_set(bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["calibrate", str(bundle.folder), "--precision", "int8", "-o", str(tmp_path / "out")]
    empty = tmp_path / "prompts.txt"
    empty.write_text("\n\n", encoding="utf-8")
    assert main([*command, "--prompts", str(empty)]) == 1
    assert "the calibration set is empty" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [empty]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--precision", "fp8", "--target", "rtx:8.6"], "without fp8: compute capability 8.6; .* --target rtx:8.9"),
        (["--precision", "fp8", "--target", "rtx:8.9,8.0"], "without fp8: compute capability 8.0"),
        (["--precision", "int3"], "'int3'; it must be one of int8, fp8, int4"),
        (["--head", "fp16"], "head is fp32; calibrate a bundle made with: bitdance-edge export --dtype fp16"),
        (["--head", "fp32"], "nothing is to be quantised"),
        (["--precision", "int8", "--calibrator", "best"], "'best'; it must be one of max, percentile, entropy, mse"),
        (["--precision", "int8", "--smooth", "2"], "--smooth: '2' is not a number from 0 to 1"),
        (["--precision", "int8", "--percentile", "10"], "--percentile: '10' is not a number from 50 to 100"),
        (["--precision", "int8", "--max-bit-flips", "much"], "'much' is not a percentage"),
        (["--precision", "int8", "--max-bit-flips", "0%"], "above 0% and below 50%"),
        (["--precision", "int8", "--patches", "99"], "--patches is 99; images of this bundle have 1 to"),
        (["--precision", "int8", "--classes", "nine"], "class 'nine' is unknown"),
        (["--precision", "int8", "--features", "net.onnx"], "give both"),
        (["--precision", "int8", "--images", "0"], "--images: '0' is not a whole number"),
        (["--precision", "int8", "--test-images", "0"], "--test-images: '0' is not a whole number"),
        (["--recipe", "nowhere.json"], r"nowhere.json cannot be read \(No such file or directory\)"),
        (["--recipe", "nowhere.json", "--head", "int8"], "omit --head"),
    ],
)
def test_refused_in_one_line(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    import re

    assert status_of("calibrate", bundle.folder, "-o", tmp_path / "out", *arguments) in (1, 2)
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_fp8_for_the_default_target_is_allowed(bundle: Bundle) -> None:
    """The target's GPUs without it are skipped, as a build does."""
    from bitdance_edge.engines.gpus import DEFAULT_GPUS
    from bitdance_edge.engines.support import require_types

    require_types(frozenset({"fp8", "int8"}), "rtx", DEFAULT_GPUS, all_of_them=False)


def test_a_bundle_does_not_take_its_own_place(bundle: Bundle, tmp_path: Path) -> None:
    """Not with --force either: what it was exported to would be lost."""
    source = Bundle.open(shutil.copytree(bundle.folder, tmp_path / "bundle"))
    (tmp_path / "link").symlink_to(source.folder)
    content = (source.folder / "bundle.json").read_bytes()
    for out in (source.folder, source.folder / "inside", tmp_path / "link", tmp_path / "x" / ".." / "bundle"):
        for how in (["--weights-only"], []):
            asked = ["calibrate", source.folder, "-o", out, "--precision", "int8", "--force", *how]
            assert main([*map(str, asked)]) == 1
    assert (source.folder / "bundle.json").read_bytes() == content
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    with pytest.raises(CalibrationError, match="circle exists; write to another folder"):
        calibrate(bundle, tmp_path / "circle", OPTIONS)


def test_neither_an_existing_folder_nor_a_calibrated_bundle(
    bundle: Bundle, calibrated: Callable[[str], Calibrated], tmp_path: Path
) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(CalibrationError, match="there exists; write to another folder"):
        calibrate(bundle, tmp_path / "there", options("int8"))
    with pytest.raises(CalibrationError, match=r"is calibrated already \(tokens, .*calibrate the bundle that it was"):
        calibrate(calibrated("int8").bundle, tmp_path / "twice", options("fp8"))


def test_builds_and_recordings_are_not_copied(bundle: Bundle, recordings: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(bundle.folder, source)
    for path in (source / "targets" / "cpu" / "head.json", source / "calibration" / "recordings" / "set.json"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}", encoding="utf-8")
    asked = replace(options("int8", ["time"], weigh_times=False), held_out=1, test_images=1, data=recordings)
    calibrate(Bundle.open(source), tmp_path / "out", asked)
    assert not (tmp_path / "out" / "targets").exists()
    assert not (tmp_path / "out" / "calibration" / "recordings").exists()


def test_a_folder_that_cannot_be_made(bundle: Bundle, recordings: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    asked = replace(options("int8", ["time"], weigh_times=False), held_out=1, test_images=1, data=recordings)
    with pytest.raises(StorageError, match=r"cannot write .*file/out: .*choose another folder"):
        calibrate(bundle, tmp_path / "file" / "out", asked)


def test_four_bits_need_a_newer_opset(bundle: Bundle, tmp_path: Path) -> None:
    """The error comes while the new bundle is written; nothing is left of it."""
    older = altered(bundle, tmp_path / "older", "time", "head.time_embed.mlp.0.bias", lambda w: w)
    path = older.folder / older.stages["time"].graph.path
    model = load(path, load_external_data=False)
    model.opset_import[0].version = 20
    save(model, path)
    stage = replace(older.stages["time"], graph=file_spec(older.folder, path))
    replace(older, stages={**older.stages, "time": stage}).write()
    with pytest.raises(CalibrationError, match=r"opset 20, and int4 weights need 21: .*without --opset 20"):
        calibrate(Bundle.open(older.folder), tmp_path / "out", replace(options("int4", ["time"]), held_out=1))
    assert [path.name for path in tmp_path.iterdir()] == ["older"]


def test_a_recipe_for_layers_that_are_not_there(bundle: Bundle, tmp_path: Path) -> None:
    recipe = replace(OPTIONS.recipe, kept=("head:head.unknown",))
    with pytest.raises(CalibrationError, match=r"layers head:head\.unknown of the recipe are not in .*named like"):
        calibrate(bundle, tmp_path / "out", replace(OPTIONS, recipe=recipe))


def test_a_file_that_is_no_recipe(tmp_path: Path) -> None:
    for content in ("{", "[]", '{"format": 9}', '{"format": 1, "draw": {}}'):
        (tmp_path / "recipe.json").write_text(content, encoding="utf-8")
        with pytest.raises(CalibrationError, match="is not a recipe of this version"):
            CalibrationRecipe.read(tmp_path / "recipe.json")


@pytest.mark.parametrize("size", [None, Size(width=192, height=128)])
def test_a_recipe_is_read_as_it_was_written(tmp_path: Path, size: Size | None) -> None:
    recipe = replace(OPTIONS.recipe, draw=replace(OPTIONS.recipe.draw, size=size), kept=("head:a", "head:b"))
    (tmp_path / "recipe.json").write_text(recipe.to_json(), encoding="utf-8")
    assert CalibrationRecipe.read(tmp_path / "recipe.json") == recipe


@pytest.mark.parametrize(("written", "size"), [(None, None), ([128, 192], Size(width=192, height=128))])
def test_a_recipe_of_format_1_has_the_height_first(
    tmp_path: Path, written: list[int] | None, size: Size | None
) -> None:
    data = json.loads(OPTIONS.recipe.to_json())
    data["format"], data["draw"]["size"] = 1, written
    (tmp_path / "recipe.json").write_text(json.dumps(data), encoding="utf-8")
    recipe = CalibrationRecipe.read(tmp_path / "recipe.json")
    assert recipe == replace(OPTIONS.recipe, feedback=False, draw=replace(OPTIONS.recipe.draw, size=size))


def test_a_judge_that_is_no_network(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="cannot be loaded as a network"):
        Judge(JudgeOptions(features=Path(__file__), references=tmp_path), Size(width=32, height=32), 1)
