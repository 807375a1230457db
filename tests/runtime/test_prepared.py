"""Graphs prepared for this processor run as the bundle's own do, and only where they fit and are whole."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bitdance_edge.engines.targets.cpu import prepare, unprepared
from bitdance_edge.runtime import Bundle, BundleError, Pipeline, Request
from bitdance_edge.runtime.backends.onnxruntime import OnnxRuntimeStage
from bitdance_edge.runtime.bundle.prepared import FOLDER, record_path

STAGES = ("backbone", "modulation", "head", "decoder")


@pytest.fixture(params=["kv24", "cpu24"])
def prepared(exported: Callable[..., Bundle], request: pytest.FixtureRequest, tmp_path: Path) -> Bundle:
    bundle = exported("cc_4x_patch", profile=request.param)
    shutil.copytree(bundle.folder, tmp_path / "bundle")
    copy = Bundle.open(tmp_path / "bundle")
    prepare(copy, STAGES)
    return copy


def image(bundle: Bundle) -> np.ndarray:
    with Pipeline.open(bundle.folder, device="cpu", threads=1) as pipeline:
        (made,) = pipeline.generate(Request(classes=[0], steps=2, seed=3))
    assert made.pixels is not None
    return made.pixels


def used(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The stages whose prepared graph is loaded."""
    loaded: set[str] = set()
    made = OnnxRuntimeStage.__init__

    def watched(stage: OnnxRuntimeStage, path: Path, *args, **options) -> None:
        if path.parent.name == FOLDER:
            loaded.add(path.stem)
        made(stage, path, *args, **options)

    monkeypatch.setattr(OnnxRuntimeStage, "__init__", watched)
    image(bundle)
    return loaded


def change_record(bundle: Bundle, stage: str, **changes: object) -> None:
    path = record_path(bundle.folder / FOLDER, stage)
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_the_image_is_the_same(prepared: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    made = image(prepared)
    assert used(prepared, monkeypatch) == set(STAGES)
    shutil.rmtree(prepared.folder / FOLDER)
    assert (made == image(prepared)).all()


@pytest.mark.parametrize("changes", [{"onnxruntime": "1.0.0"}, {"instructions": "x86_64-other"}, {"onnx": {}}])
def test_what_was_made_for_something_else_is_passed_over(
    prepared: Bundle, changes: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_record(prepared, "head", **changes)
    assert unprepared(prepared, STAGES) == ["head"]
    assert used(prepared, monkeypatch) == set(STAGES) - {"head"}


@pytest.mark.parametrize("whole_times", [False, True])
def test_an_altered_file_is_refused(prepared: Bundle, whole_times: bool) -> None:
    """Also where its size and time of modification were put back."""
    weights = prepared.folder / FOLDER / "head.onnx.data"
    content, times = bytearray(weights.read_bytes()), weights.stat()
    content[1000] ^= 1
    weights.write_bytes(content)
    if whole_times:
        os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(BundleError, match=r"head.onnx.data was altered.*--target cpu --force"):
        image(prepared)


def test_a_truncated_file_is_refused(prepared: Bundle) -> None:
    weights = prepared.folder / FOLDER / "head.onnx.data"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(BundleError, match="truncated or altered"):
        image(prepared)


def test_a_copy_is_read_again_and_runs(prepared: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(prepared.folder, tmp_path / "copied")
    assert used(Bundle.open(tmp_path / "copied"), monkeypatch) == set(STAGES)
