"""A bundle of the shipped digits, calibrated once a precision on few images."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from calibrating import Calibrated, options

from bitdance_edge.calibration.calibrate import calibrate
from bitdance_edge.runtime import Bundle


@pytest.fixture(scope="session")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for recordings, which calibrations of the same bundle share."""
    return tmp_path_factory.mktemp("recordings")


@pytest.fixture(scope="session")
def calibrated(
    digits: Callable[[str], Bundle], recordings: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Calibrated]:
    """``calibrated("int8")``: the calibrated bundle, and what was found."""
    folder, made = tmp_path_factory.mktemp("calibrated"), {}

    def get(precision: str) -> Calibrated:
        if precision not in made:
            asked = replace(options(precision), data=recordings, sensitivity=precision == "int8")
            findings = calibrate(digits("fp32"), folder / precision, asked)
            made[precision] = Calibrated(Bundle.open(folder / precision), findings)
        return made[precision]

    return get
