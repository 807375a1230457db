"""Recorded inputs: resumable, complete, and enough to run every stage again."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bitdance_edge.calibration import record as recording
from bitdance_edge.calibration.errors import CalibrationError
from bitdance_edge.calibration.recipe import Draw, Part
from bitdance_edge.calibration.record import DataSet, record
from bitdance_edge.calibration.sessions import BundleSessions
from bitdance_edge.runtime import Bundle

DRAW = Draw(images=3, seed=5, steps=4, patches=3)


@pytest.fixture(scope="module")
def sessions(bundle: Bundle) -> BundleSessions:
    return BundleSessions(bundle, 1)


@pytest.fixture(scope="module")
def whole(sessions: BundleSessions, tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    return record(sessions, DRAW, tmp_path_factory.mktemp("whole"))


def test_a_stopped_recording_goes_on_and_ends_the_same(
    sessions: BundleSessions, whole: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate, made = recording._generate, []

    def stop_at_second(*args: object) -> None:
        if len(made) == 1:
            raise KeyboardInterrupt
        made.append(args)
        generate(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(recording, "_generate", stop_at_second)
    with pytest.raises(KeyboardInterrupt):
        record(sessions, DRAW, tmp_path / "stopped")
    folder = tmp_path / "stopped" / whole.folder.name
    assert sorted(path.name for path in folder.iterdir()) == ["image-00000.npz", "set.json"]
    first = (folder / "image-00000.npz").stat().st_mtime_ns
    monkeypatch.setattr(recording, "_generate", generate)
    resumed = record(sessions, DRAW, tmp_path / "stopped")
    assert (folder / "image-00000.npz").stat().st_mtime_ns == first
    for stage in sessions.bundle.stages:
        pairs = zip(whole.samples(stage), resumed.samples(stage), strict=True)
        assert all((a.inputs[name] == b.inputs[name]).all() for a, b in pairs for name in a.inputs)


def test_a_damaged_recording_says_what_to_delete(sessions: BundleSessions, tmp_path: Path) -> None:
    data = record(sessions, replace(DRAW, images=1), tmp_path)
    file = data.folder / "image-00000.npz"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(CalibrationError, match=r"image-00000\.npz cannot be read .*delete it and run the same command"):
        list(data.samples("head"))
    file.unlink()
    assert list(record(sessions, replace(DRAW, images=1), tmp_path).samples("head"))


def test_samples_cover_all_sampling_times_and_patches(sessions: BundleSessions, tmp_path: Path) -> None:
    data = record(sessions, Draw(images=2, seed=0, steps=30), tmp_path)
    samples, patches = list(data.samples("head")), sessions.bundle.model.default_size.patches
    assert {sample.step for sample in samples} == set(range(31))
    assert {sample.launch // 31 for sample in samples} == set(range(patches))
    assert len(samples) < 0.5 * 2 * 31 * patches


def test_the_cache_is_made_again_from_what_was_recorded(sessions: BundleSessions, whole: DataSet) -> None:
    """The backbone's condition, run from its samples, is what the head was modulated by."""
    run, samples = sessions.run("backbone"), whole.samples("backbone")
    made = {(sample.image, sample.launch): sample.replay(run, ["condition"])[0] for sample in samples}
    for sample in whole.samples("modulation"):  # one launch a patch, of so few steps
        assert np.array_equal(made[sample.image, sample.launch], sample.inputs["condition"])


def test_held_out_images_are_others(bundle: Bundle) -> None:
    seeds = [
        {request.seed for request in draw.requests(bundle.model, 1)}
        for draw in (DRAW, *(DRAW.held_out(50, part) for part in Part))
    ]
    assert sum(map(len, seeds)) == len(set[int | None]().union(*seeds))


def test_prompts_of_a_linked_bundle(linked_bundle: Bundle, tmp_path: Path) -> None:
    draw = Draw(images=2, seed=0, prompts=("a red circle", "a blue square"), steps=2)
    data = record(BundleSessions(linked_bundle, 1), draw, tmp_path)
    assert len({sample.image for sample in data.samples("backbone")}) == 2
    assert all(sample.inputs["pixels"].dtype == np.uint8 for sample in data.samples("encoder"))
