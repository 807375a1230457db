"""Sizes of Parquet pages, from their own headers: a reader allocates what these say, whatever the footer states.

The headers are Thrift structs in the compact protocol: parquet.apache.org/docs/file-format/data-pages and
github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pyarrow.parquet as pq

UNPACKED, PACKED = 2, 3  # the numbers of two fields of a page's header: bytes after it is unpacked, and in the file
TRUE, FALSE, BYTE, I16, I32, I64, DOUBLE, BINARY, STRUCT = 1, 2, 3, 4, 5, 6, 7, 8, 12
MOST_PARSED = 2 * 2**20  # bytes of the headers of a column of a row group; a page of usually 1 MB has less than 100
MOST_LEVELS = 4  # a page's header has structs in structs in it


def unpacked_size(file: Path, column: pq.ColumnChunkMetaData) -> int:
    """Sum the bytes of a column's pages after they are unpacked. Raises: ValueError, OSError, EOFError."""
    start = column.data_page_offset
    if column.has_dictionary_page and column.dictionary_page_offset:
        start = min(start, column.dictionary_page_offset)
    total = 0
    with file.open("rb") as opened:
        opened.seek(start)
        headers = _Headers(opened)
        while opened.tell() < start + column.total_compressed_size:
            header = dict(headers.fields())
            unpacked, packed = header.get(UNPACKED, -1), header.get(PACKED, -1)
            if unpacked < 0 or packed < 0:
                raise ValueError("a page has no size")
            total += unpacked
            opened.seek(packed, 1)
    return total


class _Headers:
    """Reads Thrift values, at most MOST_PARSED bytes of them."""

    def __init__(self, opened: BinaryIO) -> None:
        self.opened, self.left = opened, MOST_PARSED

    def fields(self, levels: int = MOST_LEVELS) -> Iterator[tuple[int, int]]:
        """Yield the number and the value of each field of a struct; fields that are no integers are skipped."""
        if not levels:
            raise ValueError("a page's header is nested too deep")
        number = 0
        while head := self._byte():
            number = number + (head >> 4) if head >> 4 else self._integer()
            kind = head & 15
            if kind in (I16, I32, I64):
                yield number, self._integer()
            elif kind == STRUCT:
                for _ in self.fields(levels - 1):
                    pass
            elif kind in (BYTE, DOUBLE, BINARY):
                self.opened.seek({BYTE: 1, DOUBLE: 8}.get(kind) or self._varint(), 1)
            elif kind not in (TRUE, FALSE):
                raise ValueError(f"a page's header has a field of the unknown type {kind}")

    def _byte(self) -> int:
        if not (read := self.opened.read(1)):
            raise EOFError("the file ends in a page's header")
        if not self.left:
            raise ValueError(f"the headers of a column's pages have more than {MOST_PARSED:,} bytes")
        self.left -= 1
        return read[0]

    def _varint(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise ValueError("a number in a page's header is too long")

    def _integer(self) -> int:
        value = self._varint()
        return value >> 1 ^ -(value & 1)
