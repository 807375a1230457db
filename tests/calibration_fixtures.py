"""One bundle of the shipped digits, calibrated once a precision on as little as shows everything."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from calibrating import options
from safetensors.torch import load_file, save_file

from bitdance_edge.calibration.calibrate import calibrate
from bitdance_edge.calibration.findings import Findings
from bitdance_edge.export.exporter import ExportOptions
from bitdance_edge.export.opening import open_text_to_image
from bitdance_edge.runtime import Bundle

FIXTURE = Path(__file__).parent / "fixtures" / "t2i_16x_swiglu"


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
    """The small random text-to-image model; its large weights stay in the checkpoint's own files."""
    folder = tmp_path_factory.mktemp("text")
    checkpoint = shutil.copytree(FIXTURE, folder / "checkpoint")
    for name in ("model.safetensors", "vision_head.safetensors", "ae.safetensors", "projector.safetensors"):
        state = {key: value.float() for key, value in load_file(checkpoint / name).items()}
        save_file(state, checkpoint / name)
    opened = open_text_to_image(checkpoint, ExportOptions(name="text", link=True), sizes="64x64", max_prompt=96)
    return opened.export(folder / "bundle")
