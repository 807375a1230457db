"""Records of Parquet tables: one column of image files, one of classes or captions. Needs pyarrow."""

from collections import OrderedDict
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from tqdm import tqdm

from bitdance_edge.training.errors import TrainingError
from bitdance_edge.training.parquet_sizes import unpacked_sizes
from bitdance_edge.training.records import CAPTION_FIELDS, CLASS_FIELDS, class_number

IMAGE_FIELDS = ("image", "jpg", "png", "webp")
WINDOW = 4096
MOST_BYTES, BATCH_BYTES = 128 * 2**20, 16 * 2**20  # of a row group, which is read whole


class ParquetRecords:
    """Row groups are read whole and the last few kept, those of one window and of the next.

    An image is a binary value, or a struct with its ``bytes``, as the libraries of Hugging Face write it.
    """

    window: int | None = WINDOW

    def __init__(self, files: Sequence[Path], *, captions: bool) -> None:
        self.files = files
        self.groups: list[tuple[int, int, int]] = []  # file, row group in it, bytes that it unpacks to
        sizes: list[int] = []
        labels: list[NDArray[np.int64]] = []
        for number, file in enumerate(tqdm(files, desc="indexing", unit="shard", leave=False, disable=None)):
            table = _opened(file)
            wanted = (IMAGE_FIELDS, CAPTION_FIELDS if captions else CLASS_FIELDS)
            columns = [_column(file, table.schema_arrow.names, names) for names in wanted]
            if number and columns != self.columns:
                raise TrainingError(
                    f"{file} has {columns} where {files[0]} has {self.columns}; give shards of one kind"
                )
            self.columns = columns
            for group, unpacked in enumerate(_unpacked(table, file, columns)):
                self.groups.append((number, group, unpacked))
                sizes.append(table.metadata.row_group(group).num_rows)
                if not captions:
                    column = _read_group(table, file, group, self.columns[1:], unpacked).column(0).to_pylist()
                    labels.append(np.array([class_number(value, f"{file}: {columns[1]}") for value in column]))
        if not sum(sizes):
            raise TrainingError(f"{files[0]} holds no rows; give other shards")
        self.starts = np.array([0, *accumulate(sizes)])
        self.shards = np.repeat([number for number, *_ in self.groups], sizes)
        self.labels = np.zeros(len(self), np.int64) if captions else np.concatenate(labels)
        self.class_names = () if captions else tuple(map(str, range(int(self.labels.max()) + 1)))
        self._kept: OrderedDict[int, pa.Table] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        return int(self.starts[-1])

    def image(self, row: int) -> bytes:
        value = self._value(row, 0)
        value = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(value, bytes):
            raise TrainingError(
                f"{self.name(row)} has no image bytes in its column {self.columns[0]}; repair or remove it"
            )
        return value

    def caption(self, row: int) -> str:
        value = self._value(row, 1)
        if not isinstance(value, str):
            raise TrainingError(f"{self.name(row)} has no text in its column {self.columns[1]}; repair or remove it")
        return value.strip()

    def name(self, row: int) -> str:
        number, within, _ = self.groups[self._group(row)]
        first = self.starts[self._group(row) - within]
        return f"{self.files[number]}: row {row - first}"

    def _group(self, row: int) -> int:
        return int(np.searchsorted(self.starts, row, side="right")) - 1

    def _value(self, row: int, column: int) -> Any:
        group = self._group(row)
        with self._lock:
            if group not in self._kept:
                number, within, unpacked = self.groups[group]
                file = self.files[number]
                self._kept[group] = _read_group(_opened(file), file, within, self.columns, unpacked)
            self._kept.move_to_end(group)
            while len(self._kept) > 1 and sum(table.num_rows for table in self._kept.values()) > 2 * WINDOW:
                self._kept.popitem(last=False)
            table = self._kept[group]
        try:
            return table.column(self.columns[column])[row - int(self.starts[group])].as_py()
        except UnicodeDecodeError as error:
            raise TrainingError(
                f"{self.name(row)} has a text that is not UTF-8 ({error}); repair or remove it"
            ) from None


def _unpacked(table: pq.ParquetFile, file: Path, columns: Sequence[str]) -> list[int]:
    """Return the bytes that columns of each row group unpack to. Raises: TrainingError: damaged, or too many."""
    try:
        groups = [sum(sizes[column] for column in columns) for sizes in unpacked_sizes(file)]
    except (ValueError, KeyError, OSError) as error:
        raise TrainingError(f"{file} is not a whole Parquet file ({error}); copy it again") from None
    if len(groups) != table.num_row_groups:
        raise TrainingError(f"{file} is not a whole Parquet file (it has other row groups); copy it again")
    for group, size in enumerate(groups):
        if size > MOST_BYTES:
            raise _too_large(file, group)
    return groups


def _read_group(table: pq.ParquetFile, file: Path, group: int, columns: Sequence[str], unpacked: int) -> pa.Table:
    """Read columns of a row group. Raises: TrainingError: it is damaged, or has more than MOST_BYTES."""
    try:
        if not table.metadata.row_group(group).num_rows:
            return table.read_row_group(group, columns=list(columns))
        # Rows may share a value, which is no larger than its column: their copies are counted as they are made.
        rows, read, batches = max(1, BATCH_BYTES // max(1, unpacked)), 0, list[pa.RecordBatch]()
        for batch in table.iter_batches(rows, row_groups=[group], columns=list(columns)):
            batches.append(batch)
            read += batch.nbytes
            if read > MOST_BYTES:
                raise _too_large(file, group)
        return pa.Table.from_batches(batches).combine_chunks()
    except TrainingError:
        raise
    except Exception as error:  # of a damaged file pyarrow raises any
        raise TrainingError(f"{file} cannot be read ({error}); copy it again") from None


def _too_large(file: Path, group: int) -> TrainingError:
    return TrainingError(
        f"{file}: row group {group} has more than {MOST_BYTES:,} bytes, the most that is read at once; write the file "
        "again with a smaller row_group_size"
    )


def _opened(file: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(file)
    except Exception as error:  # as above
        raise TrainingError(f"{file} is not a whole Parquet file ({error}); copy it again") from None


def _column(file: Path, names: Sequence[str], wanted: Sequence[str]) -> str:
    for name in wanted:
        if name in names:
            return name
    raise TrainingError(f"{file} has the columns {', '.join(names)}, but none of {', '.join(wanted)}: rename one")
