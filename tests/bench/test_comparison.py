"""A whole comparison on a small bundle: what it reports, what it keeps, and that it continues where it stopped."""

import json
from pathlib import Path

import pytest
from benching import Compared, bench

from bitdance_edge.runtime import Bundle

pytestmark = pytest.mark.serial


def contender(report: dict, name: str) -> dict:
    return next(entry for entry in report["threads"][0]["contenders"] if entry["name"] == name)


def test_both_make_the_same_image_and_every_second_is_accounted_for(compared: Compared, bundle: Bundle):
    ours, theirs = contender(compared.report, bundle.name), contender(compared.report, "PyTorch eager")
    assert ours["agreement"]["free"]["wrong_share"] == 0
    forced = ours["agreement"]["forced"]
    assert forced["wrong_share"] == 0
    assert forced["compared"] == 2 * bundle.model.tokens_per_step * bundle.model.bits
    if not ours["agreement"]["free"]["different"]:
        assert ours["agreement"]["levels"] <= 1
    for entry in (ours, theirs):
        assert len(entry["rounds"]) == 2
        assert entry["cpu"] > 0
        for run in entry["rounds"]:
            assert run["wall"] > 0
        stages = sum(stage["seconds"] for stage in entry["stages"].values())
        assert stages + entry["overhead"]["seconds"] == pytest.approx(entry["wall"], rel=0.3)
    assert ours["against"]["PyTorch eager"].keys() == {"cpu", "wall"}


def test_stages_are_launched_as_often_as_the_sampler_says(compared: Compared, bundle: Bundle):
    ours, theirs = contender(compared.report, bundle.name), contender(compared.report, "PyTorch eager")
    for entry in (ours, theirs):
        assert entry["stages"]["head"]["launches"] == 2 * (2 + 1)
        assert entry["stages"]["backbone"]["launches"] == 2
        assert entry["stages"]["decoder"]["launches"] == 1


def test_each_stage_with_products_has_a_floor_below_its_time(compared: Compared, bundle: Bundle):
    stages = contender(compared.report, bundle.name)["stages"]
    assert compared.report["threads"][0]["machine"]["gflops"] > 1
    for name in ("backbone", "modulation", "head", "decoder"):
        assert stages[name]["operations"] > 0
        assert stages[name]["bound"] == "arithmetic"  # weights this small stay in the cache
        assert 0 < stages[name]["floor"] < 2 * stages[name]["seconds"]  # the machine may be busier at one time
    assert compared.report["operators"][bundle.name]["head"]


def test_memory_is_what_the_weights_and_the_plan_say(compared: Compared, bundle: Bundle):
    ours = contender(compared.report, bundle.name)["memory"]
    assert 0 < ours["taken_to_allowed"] <= 1
    assert ours["taken_bytes"] > ours["weights_bytes"]
    assert "for sessions" in (compared.folder / "report.md").read_text()


def test_the_folder_has_the_report_with_its_command_and_the_plot(compared: Compared):
    page = (compared.folder / "report.md").read_text()
    assert page.count(compared.report["command"]) == 1
    assert "PyTorch eager" in page
    assert (compared.folder / "bench.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((compared.folder / "report.json").read_text()) == compared.report


def test_started_again_it_runs_only_what_is_missing(compared: Compared, bundle: Bundle):
    kept = compared.folder / "runs"
    lost = kept / "t1-PyTorch_eager-round2.json"
    lost.unlink()
    before = {path.name: path.stat().st_mtime_ns for path in kept.iterdir()}
    report = bench(*compared.arguments).report
    changed = {path.name for path in kept.iterdir() if path.stat().st_mtime_ns != before.get(path.name)}
    again = {f"t1-PyTorch_eager-{name}" for name in ("round2.json", "warm-up.json", "open.json", "image.npz")}
    assert changed == {*again, "t1-after.json"}
    assert contender(report, bundle.name) | {"stages": {}, "against": {}} == contender(compared.report, bundle.name) | {
        "stages": {},
        "against": {},
    }


def test_a_folder_of_another_comparison_is_left_alone(compared: Compared, bundle: Bundle):
    said = bench(*compared.arguments, "--seed", "2").complaint
    assert "other work" in said
    assert "--force" in said


def test_a_bundle_with_another_weight_gets_no_speed(altered: Bundle, compared: Compared, tmp_path: Path) -> None:
    arguments = [altered.folder if a == compared.arguments[0] else a for a in compared.arguments[:-1]]
    said = bench(*arguments, tmp_path / "out").complaint
    assert "bits differ from PyTorch's by more than rounding" in said
    assert "--max-bit-flips" in said
    assert not (tmp_path / "out" / "report.json").exists()
