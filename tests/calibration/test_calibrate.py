"""Scales repeat to the byte, recipes travel, the search keeps what is sensitive, the report says what was measured."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from calibrating import DRAW, OPTIONS, Calibrated, altered, options

from bitdance_edge.calibration.calibrate import calibrate
from bitdance_edge.calibration.findings import summary
from bitdance_edge.calibration.recipe import CalibrationRecipe
from bitdance_edge.calibration.search import SearchResult, fewest_kept, ranked
from bitdance_edge.calibration.sessions import BundleSessions
from bitdance_edge.calibration.trials import Trial
from bitdance_edge.cli import main
from bitdance_edge.runtime import Bundle
from bitdance_edge.runtime.bundle.stage_names import LOOP_STAGES, WINDOW_STAGES

Get = Callable[[str], Calibrated]
Digits = Callable[[str], Bundle]


def test_the_same_seed_gives_the_same_bytes(calibrated: Get, digits: Digits, tmp_path: Path) -> None:
    first = calibrated("int8").bundle
    calibrate(digits("fp32"), tmp_path / "again", replace(options("int8"), data=tmp_path / "recordings"))
    again = Bundle.open(tmp_path / "again")
    for file in ("calibration/scales.json", "calibration/recipe.json"):
        assert (first.folder / file).read_bytes() == (tmp_path / "again" / file).read_bytes()
    for name, stage in first.stages.items():
        assert [file.sha256 for file in stage.files] == [file.sha256 for file in again.stages[name].files], name


def test_another_seed_gives_other_scales(calibrated: Get, digits: Digits, tmp_path: Path) -> None:
    asked = options("int8", ["backbone"], draw=replace(DRAW, images=1, seed=4))
    other = calibrate(digits("fp32"), tmp_path / "other", replace(asked, held_out=1, test_images=1, data=tmp_path))
    first = calibrated("int8").findings.chosen.variants.limits
    assert any(reached != first[name] for name, reached in other.chosen.variants.limits.items())


def test_a_trial_on_the_bundle_itself_flips_no_bit(digits: Digits) -> None:
    trial = Trial(BundleSessions(digits("fp32"), 1), DRAW)
    for outcome in (trial.free({}), trial.forced({})):
        assert outcome.flips(trial.reference) == 0 and outcome.error(trial.reference) == 0


def test_bits_and_images_are_measured(calibrated: Get) -> None:
    """Few bits flip under teacher forcing, more with less precision; images of a calibrated bundle are close."""
    found = {precision: calibrated(precision).findings.losses for precision in ("int8", "fp8", "int4")}
    for precision, one in found.items():
        assert 0 <= one.bits.forced < 0.05, precision
        assert len(one.bits.forced_by_patch) == DRAW.patches
        assert one.images.decoder_psnr is not None and one.images.decoder_psnr > 30
        assert one.images.ssim > 0.7
    assert found["int4"].stages["backbone"].relative > 1.5 * found["int8"].stages["backbone"].relative
    assert found["fp8"].stages["backbone"].relative > found["int8"].stages["backbone"].relative


def test_the_report_holds_every_figure_and_its_plots(calibrated: Get) -> None:
    folder = calibrated("int8").bundle.folder / "calibration"
    report, page = (
        json.loads((folder / "report.json").read_text(encoding="utf-8")),
        (folder / "report.md").read_text(encoding="utf-8"),
    )
    assert report["bits"]["forced"] == pytest.approx(calibrated("int8").findings.losses.bits.forced, rel=1e-5)
    assert len(report["sensitivity"]) == 69 and len(report["effect_of_times"]) == 5
    assert set(report["stages"]) == set(OPTIONS.recipe.precisions)
    for name, size in report["sizes"].items():
        assert (size["bytes"] < size["bytes_before"]) == (name not in ("prompt", *WINDOW_STAGES))
    for plot in ("images.png", "bits.png", "sensitivity.png", "times.png"):
        assert plot in page
        assert (folder / plot).read_bytes().startswith(b"\x89PNG")
    assert "head:head.final_layer.linear" in page


def test_errors_are_in_the_manifest(calibrated: Get) -> None:
    found = calibrated("int8")
    for name, loss in found.findings.losses.stages.items():
        assert found.bundle.stages[name].max_error == pytest.approx(loss.largest)


def test_the_budget_keeps_the_most_sensitive_layers(digits: Digits, recordings: Path, tmp_path: Path) -> None:
    asked = options("int4", ["backbone", "head"], max_bit_flips=0.001)
    asked = replace(asked, data=recordings, search_images=8)
    found = calibrate(digits("fp32"), tmp_path / "out", asked)
    search = found.searches["generator"]
    assert 0 < len(search.kept) < search.layers
    assert search.loss <= 0.001 < search.tried[0].loss
    assert (
        list(search.kept) == [item.layer.name for item in ranked(found.sensitivities, LOOP_STAGES)][: len(search.kept)]
    )
    assert set(search.kept).isdisjoint(found.chosen.formats)
    page = (tmp_path / "out" / "calibration" / "report.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in page for name in search.kept) and "in sensitivity (generator)" in page

    recipe = CalibrationRecipe.read(tmp_path / "out" / "calibration" / "recipe.json")
    tuned = altered(
        digits("fp32"), tmp_path / "tuned", "head", "head.final_layer.linear.bias", lambda w: w + np.float32(0.01)
    )
    reused = replace(OPTIONS, recipe=replace(recipe, max_bit_flips=None), held_out=1, test_images=1)
    again = calibrate(tuned, tmp_path / "tuned-int4", reused)
    assert again.chosen.formats == found.chosen.formats
    assert not again.searches


def test_a_budget_that_other_images_break_is_told(calibrated: Get) -> None:
    """A search holds the budget on its own images; the report says whether it holds on those of the test."""
    found = calibrated("int4").findings
    search = SearchResult(budget=found.losses.bits.forced / 2, layers=37, kept=(), loss=0.0, bits=4096, tried=())
    lines = list(summary(replace(found, searches={"generator": search})))
    assert any("budget missed" in line and "raise --search-images, or lower --max-bit-flips" in line for line in lines)
    lines = list(summary(replace(found, searches={"generator": replace(search, budget=0.4)})))
    assert not any("budget missed" in line for line in lines)


@pytest.mark.parametrize(("budget", "status"), [(1e-9, 3), (0.4, 0)])
def test_a_missed_budget_is_an_exit_status(
    calibrated: Get, digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, budget: float, status: int
) -> None:
    search = SearchResult(budget=budget, layers=37, kept=(), loss=0.0, bits=4096, tried=())
    found = replace(calibrated("int4").findings, searches={"generator": search})
    monkeypatch.setattr("bitdance_edge.calibration.calibrate.calibrate", lambda *_: found)
    assert main(["calibrate", str(digits("fp32").folder), "--precision", "int4", "-o", str(tmp_path / "out")]) == status


def test_a_budget_that_no_layer_holds_leaves_all_as_exported(
    digits: Digits, recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def all_kept(ranked: list[str], loss: object, budget: float, bits: int) -> SearchResult:
        return SearchResult(budget, len(ranked), tuple(ranked), 0.0, bits, ())

    monkeypatch.setattr("bitdance_edge.calibration.search.fewest_kept", all_kept)
    asked = replace(options("int8", ["encoder"], max_bit_flips=0.001), data=recordings)
    found = calibrate(digits("fp32"), tmp_path / "out", asked)
    assert not found.chosen.formats and found.tested("encoder") == 0 and found.losses.bits.free == 0
    assert Bundle.open(tmp_path / "out").stages["encoder"].precision == "fp32"
    assert "13 of 13 layers kept" in (tmp_path / "out" / "calibration" / "report.md").read_text(encoding="utf-8")


def test_fewest_kept_bisects() -> None:
    losses = {0: 0.08, 1: 0.05, 2: 0.03, 3: 0.02, 4: 0.01, 5: 0.008, 6: 0.004}
    asked: list[int] = []

    def loss(kept: frozenset[str]) -> float:
        asked.append(len(kept))
        return losses[len(kept)]

    names = list("abcdefg")
    found = fewest_kept(names, loss, 0.02, 1000)
    assert found.kept == ("a", "b", "c") and found.loss == 0.02
    assert len(asked) <= 4
    assert fewest_kept(names, loss, 0.1, 1000).kept == ()
    everything = fewest_kept(names, loss, 1e-9, 1000)
    assert everything.kept == tuple(names) and everything.loss == 0


def test_mixtures_from_the_command_line(digits: Digits, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["calibrate", str(digits("fp32").folder), "-o", str(tmp_path / "out"), "--data", str(tmp_path / "data")]
    few = ["--images", "1", "--held-out", "1", "--test-images", "2", "--steps", "3", "--patches", "2", "--threads", "1"]
    mixture = ["--head", "fp8", "--backbone", "int4", "--decoder", "fp32", "--encoder", "int8", "--smooth", "0.5"]
    assert main([*command, *few, *mixture, "--no-sensitivity", "--classes", "3,7"]) == 0
    assert "under teacher forcing" in capsys.readouterr().out
    made = Bundle.open(tmp_path / "out")
    assert {name: stage.precision for name, stage in made.stages.items()} == {
        "prompt": "fp32",
        "tokens": "fp32",
        "time": "fp32",
        "backbone": "int4",
        "modulation": "fp32",
        "head": "fp8",
        **dict.fromkeys(WINDOW_STAGES, "fp32"),
        "decoder": "fp32",
        "encoder": "int8",
    }
    assert main(["inspect", str(tmp_path / "out"), "--verify"]) == 0


def test_a_text_to_image_bundle(linked_bundle: Bundle, tmp_path: Path) -> None:
    """Weights that a checkpoint's own file keeps transposed are quantised into the bundle's."""
    prompts = ("a red circle", "a blue square")
    draw = replace(DRAW, prompts=prompts, steps=2, patches=None)
    stages = {name: "int8" for name in OPTIONS.recipe.precisions if name in linked_bundle.stages}
    recipe = replace(OPTIONS.recipe, precisions=stages, draw=draw, smooth=0.5)
    asked = replace(OPTIONS, recipe=recipe, test_images=2, data=tmp_path / "recordings")
    found = calibrate(linked_bundle, tmp_path / "out", asked)
    made = Bundle.open(tmp_path / "out")
    assert not made.links
    made.verified_file(made.require_fast_previews())
    assert made.stages["backbone"].bytes < 0.5 * linked_bundle.stages["backbone"].bytes
    assert found.losses.bits.forced < 0.2 and found.chosen.smoothed  # random weights: predictions lie close to zero
    command = ["generate", str(tmp_path / "out"), "--prompt", "a red circle", "--steps", "2", "--seed", "1"]
    assert main([*command, "--grid", str(tmp_path / "grid.png")]) == 0
