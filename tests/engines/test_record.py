"""The record of a build is read as it was written, or refused in one line."""

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from mutations import mutations, rewrite, spoilt

from bitdance_edge.runtime import BuildError, Bundle
from bitdance_edge.runtime.bundle.record import (
    BuildRecord,
    BuiltFile,
    built_folders,
    record_path,
    records,
    source_hashes,
    target_folder,
)

FIELDS = [field.name for field in fields(BuildRecord)]
FILE_FIELDS = [field.name for field in fields(BuiltFile)]
WRONG: list[Any] = [None, "text", 3, -1.5, True, [], {}, [None], [["a"]], {"a": None}, {"a": 1}]
AGAIN = "build again with: bitdance-edge build BUNDLE --target TARGET --force"


@pytest.fixture
def record(bundle: Bundle, tmp_path: Path) -> BuildRecord:
    graph = tmp_path / "head.onnx"
    graph.write_bytes(b"a graph")
    return BuildRecord(
        stage="head",
        target="rtx:8.9",
        library="tensorrt_rtx",
        library_version="1.7.1.116",
        devices=("8.9",),
        built_on="",
        sources=source_hashes(bundle, "head"),
        files=(BuiltFile.of(graph),),
        precision="int8+fp16",
        max_images=4,
        profiles={"all": {"x": [[1, 4, 32], [8, 4, 32], [8, 4, 32]]}},
        layers={"CONVOLUTION": {"HALF": 3}},
        options={"in_place_cache": True},
        error=None,
        tolerance=0.02,
        seconds=1.25,
    )


def written(folder: Path, data: object) -> Path:
    path = record_path(folder, "head")
    rewrite(path, json.dumps(data).encode())
    return path


def test_round_trip(record: BuildRecord, tmp_path: Path) -> None:
    for each in (record, replace(record, error=1e-5, max_images=None, profiles={}, devices=())):
        assert BuildRecord.read(written(tmp_path, json.loads(each.to_json()))) == each


@pytest.mark.parametrize("name", [*FIELDS, "format"])
def test_a_missing_field_is_refused(record: BuildRecord, tmp_path: Path, name: str) -> None:
    data = json.loads(record.to_json())
    del data[name]
    with pytest.raises(BuildError, match=AGAIN):
        BuildRecord.read(written(tmp_path, data))


def test_an_unknown_field_is_refused(record: BuildRecord, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=AGAIN):
        BuildRecord.read(written(tmp_path, json.loads(record.to_json()) | {"newer": 1}))


@pytest.mark.parametrize("name", FIELDS)
def test_a_field_of_another_type_is_refused(record: BuildRecord, bundle: Bundle, tmp_path: Path, name: str) -> None:
    """Whatever is read can be used: compared with bundle and files, described, and named in a command."""
    original = json.loads(record.to_json())
    for value in WRONG:
        path = written(tmp_path, original | {name: value})
        try:
            read = BuildRecord.read(path)
        except BuildError as error:
            assert AGAIN in str(error)
            assert "\n" not in str(error)
            continue
        assert type(getattr(read, name)) is type(getattr(record, name)) or name in ("error", "max_images", "tolerance")
        read.mismatch(bundle, "1.7.1.116")
        read.damage(tmp_path)
        assert isinstance(read.rebuild_command(bundle), str)
        assert read.bytes >= 0
        assert BuildRecord.read(written(tmp_path, json.loads(read.to_json()))) == read


@pytest.mark.parametrize("name", FILE_FIELDS)
def test_a_field_of_a_file_of_another_type_is_refused(record: BuildRecord, tmp_path: Path, name: str) -> None:
    original = json.loads(record.to_json())
    whole = original["files"][0]
    wrong = [value for value in WRONG if not isinstance(value, int if isinstance(whole[name], int) else str)]
    for value in [*wrong, *([True] if isinstance(whole[name], int) else [])]:
        with pytest.raises(BuildError, match=AGAIN):
            BuildRecord.read(written(tmp_path, original | {"files": [whole | {name: value}]}))
    without = {key: value for key, value in whole.items() if key != name}
    with pytest.raises(BuildError, match=AGAIN):
        BuildRecord.read(written(tmp_path, original | {"files": [without]}))


@pytest.mark.parametrize("name", ["../head.onnx", "/etc/passwd", "a/b", "", ".", "..", "a\\b"])
def test_files_are_in_the_folder_of_their_record(record: BuildRecord, tmp_path: Path, name: str) -> None:
    data = json.loads(record.to_json())
    data["files"][0]["name"] = name
    with pytest.raises(BuildError, match=AGAIN):
        BuildRecord.read(written(tmp_path, data))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"null", b'{"format": 99}', b"\xff\xfe"])
def test_what_is_not_a_record_is_refused(tmp_path: Path, content: bytes) -> None:
    record_path(tmp_path, "head").write_bytes(content)
    with pytest.raises(BuildError, match=AGAIN):
        BuildRecord.read(record_path(tmp_path, "head"))
    with pytest.raises(BuildError, match="missing, so nothing says what"):
        BuildRecord.read(record_path(tmp_path, "backbone"))


def test_the_rebuild_command_is_that_of_the_build(record: BuildRecord, bundle: Bundle) -> None:
    command = f"build it again with: bitdance-edge build {bundle.folder} --target rtx:8.9 --max-images 4 --force"
    assert record.rebuild_command(bundle) == command
    assert "--max-images" not in replace(record, max_images=None).rebuild_command(bundle)


def test_folders_of_targets(bundle: Bundle, record: BuildRecord, tmp_path: Path) -> None:
    bundle = replace(bundle, folder=tmp_path)
    assert built_folders(bundle) == []
    folder = target_folder(bundle, "rtx:8.9,12.0")
    folder.mkdir(parents=True)
    assert folder.name == "rtx-8.9-12.0"
    written(folder, json.loads(record.to_json()))
    assert built_folders(bundle) == [folder]
    assert list(records(folder)) == [record]


def test_one_changed_place_is_refused_or_makes_no_difference(
    record: BuildRecord, bundle: Bundle, tmp_path: Path
) -> None:
    """A record that is read can be used: compared with bundle and files, described, and named in a command."""
    content = record.to_json().encode()
    path = record_path(tmp_path, "head")
    for name, changed in (*spoilt(content), *mutations(json.loads(content))):
        rewrite(path, changed)
        try:
            read = BuildRecord.read(path)
        except BuildError as error:
            assert AGAIN in str(error), name
            assert "\n" not in str(error), name
            continue
        read.mismatch(bundle, "1.7.1.116")
        read.damage(tmp_path)
        read.rebuild_command(bundle)
        assert BuildRecord.read(written(tmp_path, json.loads(read.to_json()))) == read, name


def test_the_record_of_another_stage_is_refused(record: BuildRecord, tmp_path: Path) -> None:
    path = record_path(tmp_path, "backbone")
    path.write_text(record.to_json(), encoding="utf-8")
    with pytest.raises(BuildError, match=r"backbone\.json is the record of another stage, head; build again"):
        BuildRecord.read(path)
