"""Shared by the tests of calibration: options for small calibrations, their results, and damaged bundles."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from bitdance_edge.calibration.calibrate import CalibrateOptions
from bitdance_edge.calibration.findings import Findings
from bitdance_edge.calibration.recipe import CalibrationRecipe, Draw
from bitdance_edge.runtime import Bundle
from bitdance_edge.runtime.bundle.manifest import file_spec

STAGES = ("tokens", "time", "backbone", "modulation", "head", "decoder", "encoder")
DRAW = Draw(images=2, seed=3, steps=4, patches=3)
OPTIONS = CalibrateOptions(
    recipe=CalibrationRecipe(
        precisions=dict.fromkeys(STAGES, "int8"),
        calibrator="mse",
        percentile=99.99,
        smooth=None,
        weigh_times=True,
        draw=DRAW,
    ),
    held_out=2,
    search_images=4,
    test_images=4,
    sensitivity=False,
    threads=1,
)


@dataclass(frozen=True)
class Calibrated:
    bundle: Bundle
    findings: Findings


def options(precision: str, stages: Sequence[str] = STAGES, **changes: object) -> CalibrateOptions:
    """The options of these tests for one precision, with changes to the recipe."""
    recipe = replace(OPTIONS.recipe, precisions=dict.fromkeys(stages, precision), **changes)
    return replace(OPTIONS, recipe=recipe)


def altered(
    bundle: Bundle, folder: Path, stage: str, weight: str, change: Callable[[np.ndarray], np.ndarray]
) -> Bundle:
    """A copy of a bundle with one weight changed."""
    copied = Bundle.open(
        shutil.copytree(bundle.folder, folder, ignore=shutil.ignore_patterns("targets", "calibration"))
    )
    path = folder / copied.stages[stage].graph.path
    model = onnx.load(path)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == weight)
    tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor)), weight))
    path.with_name(f"{path.name}.data").unlink()
    onnx.save(model, path, save_as_external_data=True, location=f"{path.name}.data")
    weights = (file_spec(folder, path.with_name(f"{path.name}.data")),)
    stages = {**copied.stages, stage: replace(copied.stages[stage], graph=file_spec(folder, path), weights=weights)}
    replace(copied, stages=stages).write()
    return Bundle.open(folder)
