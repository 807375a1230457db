"""Shards in the formats that others read, equal byte by byte whenever they are written."""

import io
import json
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from bulking import IMAGES, SHARDS, digests, made, small_plan
from PIL import Image

from bitdance_edge.runtime import Bundle, Pipeline, read_settings
from bitdance_edge.scale.errors import ScaleError
from bitdance_edge.scale.formats import read_rows
from bitdance_edge.scale.plan import Plan, make_plan


def test_a_tar_is_as_webdataset_reads_it(job: Plan, whole: Path, tmp_path: Path) -> None:
    with tarfile.open(whole / "00003.tar") as archive:
        members = archive.getmembers()
        assert [member.name for member in members[:3]] == ["000000024.png", "000000024.json", "000000024.cls"]
        assert len(members) == 3 * IMAGES
        assert {(member.mtime, member.uid, member.gid, member.uname, member.mode) for member in members} == {
            (0, 0, 0, "", 0o644)
        }
        archive.extractall(tmp_path, filter="data")
    settings = json.loads((tmp_path / "000000024.json").read_text())
    assert settings["seed"] == 7 + 24 and (tmp_path / "000000025.cls").read_text() == "1"
    assert read_settings(tmp_path / "000000024.png") == settings


def test_shards_hold_what_the_pipeline_makes_of_their_launches(job: Plan, whole: Path, bundle: Bundle) -> None:
    with Pipeline.open(bundle.folder, threads=1, max_batch=job.images_at_once) as pipeline:
        images = [image for request in job.launches(2) for image in pipeline.generate(request)]
    rows = list(read_rows(whole / "00002.tar", job.images_of(2)))
    assert [row.index for row in rows] == list(job.images_of(2))
    for row, image in zip(rows, images, strict=True):
        assert (row.class_id, row.seed, row.prompt) == (image.class_id, image.seed, None)
        assert image.pixels is not None and np.array_equal(row.pixels, image.pixels)


@pytest.mark.parametrize("file_format", ["parquet", "npz"])
def test_other_formats_hold_the_same_images(file_format: str, job: Plan, whole: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow" if file_format == "parquet" else "numpy")
    plan = small_plan(Path(job.bundle), file_format)
    made(plan, tmp_path)
    for shard in (0, SHARDS - 1):
        want = list(read_rows(whole / job.file(shard), job.images_of(shard)))
        found = list(read_rows(tmp_path / plan.file(shard), plan.images_of(shard)))
        for one, other in zip(want, found, strict=True):
            assert (one.index, one.class_id, one.seed) == (other.index, other.class_id, other.seed)
            assert np.array_equal(one.pixels, other.pixels)


def test_parquet_has_several_row_groups_of_large_images(
    job: Plan, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    want = list(read_rows(whole / job.file(0), job.images_of(0)))
    monkeypatch.setattr("bitdance_edge.scale.formats.GROUP_BYTES", 1)
    plan = small_plan(Path(job.bundle), "parquet")
    made(plan, tmp_path)
    assert parquet.ParquetFile(tmp_path / plan.file(0)).num_row_groups == IMAGES
    found = list(read_rows(tmp_path / plan.file(0), plan.images_of(0)))
    assert all(np.array_equal(one.pixels, other.pixels) for one, other in zip(want, found, strict=True))


@pytest.mark.parametrize("file_format", ["tar", "parquet", "npz"])
def test_the_same_shard_has_the_same_bytes_a_while_later(
    file_format: str, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pyarrow" if file_format == "parquet" else "numpy")
    plan = make_plan(
        str(bundle.folder), classes=[0, 1], count=2, shard_images=4, settings={"steps": 1}, file_format=file_format
    )
    first = digests(plan, made(plan, tmp_path / "first"))
    later = time.time() + 100_000
    monkeypatch.setattr(time, "time", lambda: later)
    assert digests(plan, made(plan, tmp_path / "second")) == first


def test_an_npz_is_as_adm_reads_it(bundle: Bundle, tmp_path: Path) -> None:
    plan = make_plan(
        str(bundle.folder), classes=[2, 3], count=2, shard_images=4, settings={"steps": 1}, file_format="npz"
    )
    with np.load(made(plan, tmp_path) / "00000.npz") as found:
        assert found["arr_0"].dtype == np.uint8 and found["arr_0"].shape[0] == 4 and found["arr_0"].shape[3] == 3
        assert found["arr_1"].tolist() == [2, 3, 2, 3] and found["seeds"].tolist() == [0, 1, 2, 3]


def test_a_parquet_file_has_the_columns_of_the_datasets_library(bundle: Bundle, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    plan = make_plan(
        str(bundle.folder), classes=[2, 3], count=2, shard_images=4, settings={"steps": 1}, file_format="parquet"
    )
    table = parquet.read_table(made(plan, tmp_path) / "00000.parquet")
    assert table.column_names == ["image", "class", "seed", "settings"]
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert features["image"] == {"_type": "Image"} and features["class"] == {"dtype": "int64", "_type": "Value"}
    picture = table.column("image")[1].as_py()
    assert picture["path"] == "000000001.png"
    assert Image.open(io.BytesIO(picture["bytes"])).format == "PNG"


@pytest.mark.parametrize("file_format", ["tar", "parquet", "npz"])
def test_captions_are_kept_with_their_images(file_format: str, word_bundle: Bundle, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow" if file_format == "parquet" else "numpy")
    plan = make_plan(
        str(word_bundle.folder),
        prompts=["a red fish", "red fish"],
        count=2,
        shard_images=3,
        settings={"steps": 1, "size": "64x64"},
        file_format=file_format,
    )
    folder = made(plan, tmp_path)
    rows = [row for shard in (0, 1) for row in read_rows(folder / plan.file(shard), plan.images_of(shard))]
    assert [row.prompt for row in rows] == ["a red fish", "red fish", "a red fish", "red fish"]
    assert [row.seed for row in rows] == [0, 1, 2, 3] and {row.class_id for row in rows} == {None}


@pytest.mark.parametrize("file_format", ["tar", "parquet", "npz"])
def test_a_damaged_shard_is_named(file_format: str, bundle: Bundle, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow" if file_format == "parquet" else "numpy")
    plan = make_plan(
        str(bundle.folder), classes=[2, 3], count=2, shard_images=4, settings={"steps": 1}, file_format=file_format
    )
    path = made(plan, tmp_path) / plan.file(0)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ScaleError, match=f"{path.name}.* bulk verify"):
        list(read_rows(path, plan.images_of(0)))
