"""Parquet files that unpack to much more than their size are refused, and little memory is used for it."""

from contextlib import nullcontext
from pathlib import Path

import pytest

pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")

from bitdance_edge.training import parquet_records  # noqa: E402 (they need pyarrow)
from bitdance_edge.training.errors import TrainingError  # noqa: E402
from bitdance_edge.training.parquet_records import ParquetRecords  # noqa: E402

DEFAULT = pa.default_memory_pool()
POOL = pa.proxy_memory_pool(DEFAULT)  # outlives all that it holds


@pytest.mark.parametrize("kind", ["stated", "shared", "empty", "whole"])
def test_row_groups_of_much_data_are_refused_before_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(parquet_records, "MOST_BYTES", 2**20)
    monkeypatch.setattr(parquet_records, "BATCH_BYTES", 2**17)
    file, rows = tmp_path / "shard.parquet", {"empty": 0, "whole": 60}.get(kind, 3000)
    images = [bytes(16_000) + (b"" if kind == "shared" else bytes([row % 256, row // 256])) for row in range(rows)]
    table = pa.table({"image": pa.array(images, pa.binary()), "label": pa.array(range(rows), pa.int64())})
    pq.write_table(table, file, compression="zstd", use_dictionary=kind == "shared")
    pa.set_memory_pool(POOL)
    try:
        message = "no rows" if kind == "empty" else "smaller row_group_size"
        with nullcontext() if kind == "whole" else pytest.raises(TrainingError, match=rf"shard\.parquet.*{message}"):
            records = ParquetRecords([file], captions=False)
            assert [records.image(row) for row in range(rows)] == images
    finally:
        pa.set_memory_pool(DEFAULT)
    assert POOL.max_memory() < 3 * 2**20


def test_a_caption_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "shard.parquet"
    captions = pa.array([b"a fish", b"a f\x8esh"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"image": [b"", b""], "caption": captions}), file)
    records = ParquetRecords([file], captions=True)
    assert records.caption(0) == "a fish"
    with pytest.raises(TrainingError, match=r"shard\.parquet: row 1 has a text that is not UTF-8"):
        records.caption(1)
