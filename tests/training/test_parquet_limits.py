"""Parquet files that unpack to much more than their size are refused, and little memory is used for it."""

from contextlib import nullcontext, suppress
from pathlib import Path

import numpy as np
import pytest

pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")

from bitdance_edge.training import parquet_records, parquet_sizes  # noqa: E402 (they need pyarrow)
from bitdance_edge.training.errors import TrainingError  # noqa: E402
from bitdance_edge.training.parquet_records import ParquetRecords  # noqa: E402

DEFAULT = pa.default_memory_pool()
POOL = pa.proxy_memory_pool(DEFAULT)  # outlives all that it holds


def footer_saying(content: bytes, said: int, instead: int) -> bytes:
    """The same Parquet file, whose footer states other sizes; its varints keep their lengths."""

    def varint(value: int, length: int) -> bytes:
        digits = [value * 2 >> 7 * place & 127 for place in range(length)]
        return bytes([digit | 128 for digit in digits[:-1]] + digits[-1:])

    length = (said * 2).bit_length() // 7 + 1
    start = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    footer = content[start:].replace(varint(said, length), varint(instead, length))
    assert footer != content[start:]
    return content[:start] + footer


@pytest.mark.parametrize("kind", ["stated", "shared", "unstated", "many pages", "empty", "whole"])
def test_row_groups_of_much_data_are_refused_before_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(parquet_records, "MOST_BYTES", 2**20)
    monkeypatch.setattr(parquet_records, "BATCH_BYTES", 2**17)
    file, rows = tmp_path / "shard.parquet", {"empty": 0, "whole": 60}.get(kind, 3000)
    images = [bytes(16_000) + (b"" if kind == "shared" else bytes([row % 256, row // 256])) for row in range(rows)]
    table = pa.table({"image": pa.array(images, pa.binary()), "label": pa.array(range(rows), pa.int64())})
    page = {"write_batch_size": 1, "data_page_size": 1} if kind == "many pages" else {}
    pq.write_table(table, file, compression="zstd", use_dictionary=kind == "shared", **page)
    if kind == "unstated":
        group = pq.ParquetFile(file).metadata.row_group(0)
        for said in (group.column(0).total_uncompressed_size, group.total_byte_size):
            file.write_bytes(footer_saying(file.read_bytes(), said, 1000))
    if kind == "many pages":
        monkeypatch.setattr(parquet_sizes, "MOST_HEADERS", 1000)
        monkeypatch.setattr(parquet_records, "MOST_BYTES", 2**30)
    pa.set_memory_pool(POOL)
    try:
        message = {"many pages": "too large", "empty": "no rows"}.get(kind, "smaller row_group_size")
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


@pytest.mark.parametrize("place", range(1, 4))
def test_damage_anywhere_is_one_error(tmp_path: Path, place: int) -> None:
    """Bytes of pages, headers and footer, replaced at random."""
    rng, file = np.random.default_rng(place), tmp_path / "shard.parquet"
    table = pa.table({"image": [bytes(range(200))] * 40, "label": range(40), "info": [{"a": [1, 2]}] * 40})
    pq.write_table(table, file, row_group_size=16)
    content = np.frombuffer(file.read_bytes(), np.uint8)
    for _ in range(100):
        damaged = content.copy()
        damaged[rng.integers(len(content), size=place)] = rng.integers(256, size=place)
        file.write_bytes(damaged.tobytes())
        with suppress(TrainingError):
            records = ParquetRecords([file], captions=False)
            [records.image(row) for row in range(len(records))]
