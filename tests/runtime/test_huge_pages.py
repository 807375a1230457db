"""Memory in huge pages: which is asked for, and that the system gives it."""

import re
from pathlib import Path

import numpy as np
import pytest

from bitdance_edge.runtime.backends import huge_pages
from bitdance_edge.runtime.backends.huge_pages import PAGE, available, without


@pytest.mark.parametrize(
    ("ranges", "taken", "left"),
    [
        ([(10, 20)], [], [(10, 20)]),
        ([(10, 20)], [(10, 20)], []),
        ([(10, 20)], [(5, 12), (15, 16), (18, 30)], [(12, 15), (16, 18)]),
        ([(10, 20), (30, 40)], [(20, 30)], [(10, 20), (30, 40)]),
        ([(10, 40)], [(20, 30)], [(10, 20), (30, 40)]),
    ],
)
def test_only_new_memory_is_touched(
    ranges: list[tuple[int, int]], taken: list[tuple[int, int]], left: list[tuple[int, int]]
) -> None:
    assert list(without(ranges, taken)) == left


@pytest.mark.skipif(not available(), reason="this system has no transparent huge pages")
def test_memory_taken_inside_is_in_huge_pages() -> None:
    before = held()
    with huge_pages.huge_pages():
        kept = np.ones(32 * PAGE, np.uint8)
    assert held() - before > 16 * PAGE
    assert kept.all()


def test_a_system_without_them_is_left_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huge_pages, "SETTING", tmp_path / "missing")
    monkeypatch.setattr(huge_pages, "MAPS", tmp_path / "missing")
    with huge_pages.huge_pages():
        kept = np.ones(PAGE, np.uint8)
    assert kept.all()


def test_a_process_that_may_not_read_its_memory_map_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    setting = tmp_path / "enabled"
    setting.write_text("always [madvise] never", encoding="utf-8")
    monkeypatch.setattr(huge_pages, "SETTING", setting)
    monkeypatch.setattr(huge_pages, "MAPS", tmp_path / "missing")
    asked = watched_requests(monkeypatch)
    with huge_pages.huge_pages():
        kept = np.ones(4 * PAGE, np.uint8)
    assert kept.all() and not asked


@pytest.mark.parametrize(("value", "on"), [("0", False), ("1", True), (None, True)])
def test_the_environment_switches_them_off(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, value: str | None, on: bool
) -> None:
    setting = tmp_path / "enabled"
    setting.write_text("always [madvise] never", encoding="utf-8")
    monkeypatch.setattr(huge_pages, "SETTING", setting)
    monkeypatch.delenv("BITDANCE_EDGE_HUGE_PAGES", raising=False)
    if value is not None:
        monkeypatch.setenv("BITDANCE_EDGE_HUGE_PAGES", value)
    asked = watched_requests(monkeypatch)
    with huge_pages.huge_pages():
        kept = np.ones(32 * PAGE, np.uint8)
    assert kept.all()
    assert (sum(last - first for first, last in asked) >= 16 * PAGE) == on


def watched_requests(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The ranges that huge pages are asked for, in place of asking."""
    asked: list[tuple[int, int]] = []

    def collapse(first: int, last: int) -> int:
        asked.append((first, last))
        return last - first

    monkeypatch.setattr(huge_pages, "collapse", collapse)
    return asked


def held() -> int:
    """Bytes of this process in huge pages."""
    rollup = Path("/proc/self/smaps_rollup").read_text(encoding="utf-8")
    return 1024 * int(re.findall(r"AnonHugePages:\s+(\d+) kB", rollup)[0])
