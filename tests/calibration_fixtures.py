"""A bundle of the shipped digits, calibrated once a precision on few images, and a text-to-image bundle."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from calibrating import Calibrated, options
from safetensors.torch import load_file, save_file

from bitdance_edge.calibration.calibrate import calibrate
from bitdance_edge.export.exporter import ExportOptions
from bitdance_edge.export.opening import open_text_to_image
from bitdance_edge.runtime import Bundle

FIXTURE = Path(__file__).parent / "fixtures" / "t2i_16x_swiglu"


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


@pytest.fixture(scope="session")
def text_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The small random text-to-image model; its large weights stay in the checkpoint's own files."""
    folder = tmp_path_factory.mktemp("text")
    checkpoint = shutil.copytree(FIXTURE, folder / "checkpoint")
    for name in ("model.safetensors", "vision_head.safetensors", "ae.safetensors", "projector.safetensors"):
        state = {key: value.float() for key, value in load_file(checkpoint / name).items()}
        save_file(state, checkpoint / name)
    opened = open_text_to_image(checkpoint, ExportOptions(name="text", link=True), sizes="64x64", max_prompt=96)
    return opened.export(folder / "bundle")
