"""Bytes that the columns of a Parquet file unpack to, by its pages' own headers: a reader allocates what these say.

The footer's sums may say less, and pyarrow ends the process when it is asked for those of a column of some damaged
footers. Footer and headers are Thrift structs in the compact protocol: parquet.apache.org/docs/file-format and
github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md.
"""

from pathlib import Path
from typing import Any, BinaryIO

MAGIC = b"PAR1"
# Numbers of fields: of the footer, a row group, a column in it, what is said of the column, and a page's header.
ROW_GROUPS, COLUMNS, ABOUT = 4, 1, 3
NAMES, PACKED_BYTES, FIRST_PAGE, DICTIONARY = 3, 7, 9, 11
UNPACKED, PACKED = 2, 3
# Types of the compact protocol.
TRUE, FALSE, BYTE, I16, I32, I64, DOUBLE, BINARY, LIST, SET, MAP, STRUCT = range(1, 13)
MOST_FOOTER = 8 * 2**20  # bytes; a column of a row group has some hundred
MOST_HEADERS = 2 * 2**20  # bytes of a column of a row group; a page of usually 1 MB has less than 100
MOST_LEVELS = 12


def unpacked_sizes(file: Path) -> list[dict[str, int]]:
    """Return, for each row group, the bytes of each column of the table with all its fields.

    Raises:
        ValueError: the file is damaged, or its footer or headers are too large. OSError: it cannot be read.
    """
    with file.open("rb") as opened:
        size = opened.seek(0, 2)
        opened.seek(max(0, size - 8))
        tail = opened.read(8)
        length = int.from_bytes(tail[:4], "little")
        if tail[4:] != MAGIC or length > size - 8:
            raise ValueError("it does not end as a Parquet file does")
        opened.seek(size - 8 - length)
        footer = _Thrift(opened, MOST_FOOTER).struct()
        groups = []
        for group in _field(footer, ROW_GROUPS, list):
            sizes: dict[str, int] = {}
            for column in _field(group, COLUMNS, list):
                about = _field(column, ABOUT, dict)
                name = _field(about, NAMES, list)[0].decode()
                sizes[name] = sizes.get(name, 0) + _unpacked(opened, about)
            groups.append(sizes)
        return groups


def _unpacked(opened: BinaryIO, about: dict[int, Any]) -> int:
    """Sum the bytes of the pages of a column of a row group."""
    start = _field(about, FIRST_PAGE, int)
    if 0 < about.get(DICTIONARY, 0) < start:
        start = about[DICTIONARY]
    end, total = start + _field(about, PACKED_BYTES, int), 0
    opened.seek(start)
    headers = _Thrift(opened, MOST_HEADERS)
    while opened.tell() < end:
        header = headers.struct()
        unpacked, packed = _field(header, UNPACKED, int), _field(header, PACKED, int)
        if unpacked < 0 or packed < 0:
            raise ValueError("a page has no size")
        total += unpacked
        opened.seek(packed, 1)
    return total


def _field(struct: Any, number: int, kind: type) -> Any:
    value = struct.get(number) if isinstance(struct, dict) else None
    if not isinstance(value, kind):
        raise ValueError(f"a struct of its footer or of a page has no field {number} of the right type")
    return value


class _Thrift:
    """Reads values at the place of a file, of at most ``most`` bytes in total."""

    def __init__(self, opened: BinaryIO, most: int) -> None:
        self.opened, self.left = opened, most

    def struct(self, level: int = 0) -> dict[int, Any]:
        """The values of a struct by the numbers of their fields."""
        found, number = dict[int, Any](), 0
        while head := self._bytes(1)[0]:
            number = number + (head >> 4) if head >> 4 else self._integer()
            kind = head & 15
            found[number] = kind == TRUE if kind in (TRUE, FALSE) else self._value(kind, level)
        return found

    def _value(self, kind: int, level: int) -> Any:
        if level == MOST_LEVELS:
            raise ValueError(f"values are nested in more than {MOST_LEVELS} levels")
        if kind in (I16, I32, I64):
            return self._integer()
        if kind in (TRUE, FALSE, BYTE):  # in a list a truth value takes a byte
            return self._bytes(1)[0]
        if kind == DOUBLE:
            return self._bytes(8)
        if kind == BINARY:
            return self._bytes(self._varint())
        if kind in (LIST, SET):
            head = self._bytes(1)[0]
            count = head >> 4 if head >> 4 < 15 else self._varint()
            return [self._value(head & 15, level + 1) for _ in range(count)]
        if kind == STRUCT:
            return self.struct(level + 1)
        raise ValueError(f"a value has the unknown type {kind}")

    def _bytes(self, count: int) -> bytes:
        if count > self.left:
            raise ValueError("its footer, or the headers of a column's pages, are too large")
        self.left -= count
        if len(read := self.opened.read(count)) < count:
            raise ValueError("the file ends too early")
        return read

    def _varint(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self._bytes(1)[0]
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise ValueError("a number is too long")

    def _integer(self) -> int:
        value = self._varint()
        return value >> 1 ^ -(value & 1)
