"""Every calibration measures windows again: here on one patch of each setting."""

import pytest

from bitdance_edge.calibration import write


@pytest.fixture(scope="session", autouse=True)
def short_windows() -> None:
    write.WINDOW_PATCHES = 1
