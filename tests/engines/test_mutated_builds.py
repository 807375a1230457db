"""A record in ``targets/`` with one place changed: its build is used unchanged, passed over, or refused in one line."""

import shutil
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
from mutations import rewrite, some_mutations

from bitdance_edge.commands.inspect import _builds
from bitdance_edge.errors import BitDanceError
from bitdance_edge.runtime import Bundle
from bitdance_edge.runtime.backends.built_graphs import BuiltGraphs
from bitdance_edge.runtime.bundle.record import BuildRecord, BuiltFile, record_path, source_hashes, target_folder

pytestmark = pytest.mark.usefixtures("cheap")
TARGET = "cpu"


@pytest.fixture
def built_head(bundle: Bundle, tmp_path: Path) -> Path:
    """The record of a build of the head that is the bundle's own graph; its bundle is ``tmp_path / "bundle"``."""
    copied = Bundle.open(shutil.copytree(bundle.folder, tmp_path / "bundle"))
    folder = target_folder(copied, TARGET)
    folder.mkdir(parents=True)
    files = [Path(shutil.copy(copied.folder / file.path, folder)) for file in copied.stage("head").files]
    record = BuildRecord(
        stage="head",
        target=TARGET,
        library="onnxruntime",
        library_version=version("onnxruntime"),
        devices=(),
        built_on="",
        sources=source_hashes(copied, "head"),
        files=tuple(map(BuiltFile.of, files)),
        precision="fp32",
        max_images=None,
        profiles={},
        layers={},
        options={},
        error=0.0,
        tolerance=1e-4,
        seconds=1.0,
    )
    path = record_path(folder, "head")
    path.write_text(record.to_json(), encoding="utf-8")
    return path


def changed(path: Path) -> Iterator[str]:
    """Write each mutation of a record in its place; yields what was done."""
    content = path.read_bytes()
    for place, mutated in some_mutations(content):
        rewrite(path, mutated)
        yield place


def test_a_changed_record_gives_the_graph_that_was_built_or_the_bundles_own(built_head: Path, tmp_path: Path) -> None:
    bundle, graph = Bundle.open(tmp_path / "bundle"), built_head.with_name("head.onnx")
    assert BuiltGraphs.find(bundle, TARGET, version("onnxruntime")).graph("head") == graph
    used = 0
    for place in changed(built_head):
        found = BuiltGraphs.find(bundle, TARGET, version("onnxruntime"))
        try:
            taken = found.graph("head")
        except BitDanceError as error:
            assert "\n" not in str(error) and len(str(error)) < 1500, place
            continue
        assert taken in (None, graph), place
        used += taken == graph
        for reason in found.passed_over.values():
            assert "\n" not in reason and len(reason) < 1500, place
    assert used


def test_a_changed_record_is_listed_or_named(built_head: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(tmp_path / "bundle")
    for place in changed(built_head):
        heading, line = _builds(bundle)
        assert heading == "built" and "\n" not in line and len(line) < 1500, place
