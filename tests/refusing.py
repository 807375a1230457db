"""How much a refusal may cost: for every test of a file, with ``pytestmark = pytest.mark.usefixtures("cheap")``."""

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

MOST_MEMORY = 300_000  # kB more than before, at any moment
MOST_SECONDS = 5.0  # of this process
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@pytest.fixture
def cheap() -> Iterator[None]:
    """Measure the test."""
    if not RESET.exists():
        yield
        return
    RESET.write_text("5", encoding="utf-8")  # the peak from here on; see proc(5)
    before, started = kilobytes("VmRSS"), time.process_time()
    yield
    assert time.process_time() - started < MOST_SECONDS
    assert kilobytes("VmHWM") - before < MOST_MEMORY


def kilobytes(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", STATUS.read_text(encoding="utf-8"))
    assert found is not None
    return int(found[1])
