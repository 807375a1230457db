"""Weights in huge pages: a thin product reads each weight once, and waits for page tables as well as for memory.

Most Linux systems give huge pages only to memory that asks for them (``/sys/kernel/mm/transparent_hugepage/enabled``),
and ONNX Runtime does not ask. https://man7.org/linux/man-pages/man2/madvise.2.html

Set the environment variable ``BITDANCE_EDGE_HUGE_PAGES`` to 0 to leave the weights in pages of the usual size: where
memory is short or shared by many processes, or to measure what huge pages bring. Any other value, or none, is on.
"""

import ctypes
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

log = logging.getLogger(__name__)

SWITCH = "BITDANCE_EDGE_HUGE_PAGES"
PAGE = 2 << 20  # bytes of a huge page on x86-64 and on arm64 with pages of 4 KiB
MADV_HUGEPAGE = 14
MADV_COLLAPSE = 25  # at once; kernels before 6.1 know MADV_HUGEPAGE only, which they follow later
SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
MAPS = Path("/proc/self/maps")

Range = tuple[int, int]  # addresses: the first one, and the first one behind


@contextmanager
def huge_pages() -> Iterator[None]:
    """Put memory that is taken inside the block into huge pages, where the system has them; elsewhere do nothing."""
    if not available() or (before := anonymous()) is None:
        yield
        return
    yield
    asked = sum(collapse(first, last) for first, last in without(anonymous() or [], before))
    log.debug("huge pages asked for %.0f MB", asked / 1e6)


def available() -> bool:
    """Whether the system has huge pages, and they are not switched off for this process or for all."""
    if os.environ.get(SWITCH) == "0":
        return False
    try:
        return "[never]" not in SETTING.read_text(encoding="utf-8")
    except OSError:  # another system, or a kernel without them
        return False


def anonymous() -> list[Range] | None:
    """This process's private writable memory without a file, by ascending address; None where it cannot be read."""
    try:
        lines = MAPS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    found = []
    for line in lines:
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
    """Ask for huge pages in a range; returns the bytes of the whole pages in it."""
    first, last = -(-first // PAGE) * PAGE, last // PAGE * PAGE
    if first >= last:
        return 0
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    # Either may be refused (no contiguous memory left, an old kernel): the memory then stays in small pages.
    madvise(first, last - first, MADV_HUGEPAGE)
    madvise(first, last - first, MADV_COLLAPSE)
    return last - first
