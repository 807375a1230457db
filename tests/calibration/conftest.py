"""One bundle of the shipped digits, calibrated once a precision on as little as shows everything."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from calibrating import options

from bitdance_edge.calibration.calibrate import calibrate
from bitdance_edge.calibration.findings import Findings
from bitdance_edge.cli import main
from bitdance_edge.runtime import Bundle

FIXTURE = Path(__file__).parents[1] / "fixtures" / "t2i_16x_swiglu"


@pytest.fixture(scope="session")
def calibrated(digits: Callable[[str], Bundle], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Findings]:
    """``calibrated("int8")``: what was found; its ``calibrated`` is the bundle."""
    folder, made = tmp_path_factory.mktemp("calibrated"), {}

    def get(precision: str) -> Findings:
        if precision not in made:
            source = digits("fp32")
            place = Path(folder / precision)
            asked = replace(options(precision), data=folder / "recordings", sensitivity=precision == "int8")
            found = calibrate(source, place, asked)
            made[precision] = replace(found, calibrated=Bundle.open(place))
        return made[precision]

    return get


@pytest.fixture(scope="session")
def text_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The small random text-to-image model, with weights that stay in the checkpoint's own files."""
    folder = tmp_path_factory.mktemp("text")
    checkpoint = shutil.copytree(
        Path(__file__).parents[1] / "fixtures" / "t2i_16x_swiglu", folder / "checkpoint"
    )  # links need one file system
    assert main(["export", str(checkpoint), "-o", str(folder / "bundle")]) == 0
    return Bundle.open(folder / "bundle")
