"""Weights in huge pages: a thin product reads each weight once, and waits for page tables as well as for memory.

Most Linux systems give huge pages only to memory that asks for them (``/sys/kernel/mm/transparent_hugepage/enabled``),
and ONNX Runtime does not ask. https://man7.org/linux/man-pages/man2/madvise.2.html
"""

import ctypes
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

log = logging.getLogger(__name__)

PAGE = 2 << 20  # bytes of a huge page on x86-64 and on arm64 with pages of 4 KiB
MADV_HUGEPAGE = 14
MADV_COLLAPSE = 25  # at once; kernels before 6.1 know only the advice, and follow it in time
SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
MAPS = Path("/proc/self/maps")

Range = tuple[int, int]  # addresses, the second is the first behind it


@contextmanager
def huge_pages() -> Iterator[None]:
    """Put memory that is taken inside into huge pages where the system gives them; elsewhere this does nothing."""
    if not available():
        yield
        return
    before = anonymous()
    yield
    collapsed = sum(collapse(first, last) for first, last in without(anonymous(), before))
    log.debug("%.0f MB in huge pages", collapsed / 1e6)


def available() -> bool:
    try:
        return "[never]" not in SETTING.read_text()
    except OSError:  # another system, or a kernel without them
        return False


def anonymous() -> list[Range]:
    """This process's private writable memory that no file is behind, by ascending address."""
    found = []
    for line in MAPS.read_text().splitlines():
        addresses, permissions, _, _, inode, *path = line.split()
        if permissions == "rw-p" and inode == "0" and path in ([], ["[heap]"]):
            first, last = (int(address, 16) for address in addresses.split("-"))
            found.append((first, last))
    return found


def without(ranges: list[Range], taken: list[Range]) -> Iterator[Range]:
    """The parts of ``ranges`` that are in none of ``taken``; both ascend."""
    for first, last in ranges:
        for start, end in taken:
            if end <= first or start >= last:
                continue
            if start > first:
                yield first, start
            first = max(first, end)
        if first < last:
            yield first, last


def collapse(first: int, last: int) -> int:
    """Ask for huge pages for the whole ones in a range; the bytes that they are."""
    first, last = -(-first // PAGE) * PAGE, last // PAGE * PAGE
    if first >= last:
        return 0
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    # Either may be refused (no memory left in one piece, an old kernel): the memory is then as good as it was.
    madvise(first, last - first, MADV_HUGEPAGE)
    madvise(first, last - first, MADV_COLLAPSE)
    return last - first
