"""Bundles and engines of one checkpoint, exported, quantised and built once a test run."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
from building import build
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from sharing import made_once, run_folder

from bitdance_edge.engines.graph import read_graph
from bitdance_edge.engines.samples import record_samples
from bitdance_edge.runtime import Bundle
from bitdance_edge.runtime.backends.tensorrt_library import Library, load_library
from bitdance_edge.runtime.bundle.manifest import file_spec
from bitdance_edge.runtime.bundle.record import BuildRecord

CHECKPOINT = Path(__file__).parents[1] / "checkpoints" / "digits-4x"
QUANTIZED = {
    "int8": (QuantType.QInt8, CalibrationMethod.MinMax),
    "fp8": (QuantType.QFLOAT8E4M3FN, CalibrationMethod.Distribution),
}


@pytest.fixture(scope="session")
def library() -> Library:
    return load_library("tensorrt_rtx")


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Bundle]:
    """``digits("fp16")``: the bundle of the checkpoint; int8 and fp8 are Q/DQ graphs made of the fp32 one here."""
    from bitdance_edge.export.exporter import ExportOptions, export_bundle
    from bitdance_edge.model import load_generator

    folder, made = run_folder(tmp_path_factory) / "digits", {}

    def make(precision: str, target: Path) -> None:
        if precision in QUANTIZED:
            quantized(get("fp32"), target, precision)
        else:
            options = ExportOptions(name=precision, precision=precision, window_patches=0)
            export_bundle(load_generator(CHECKPOINT), target, options, {})

    def get(precision: str) -> Bundle:
        if precision not in made:
            made[precision] = Bundle.open(made_once(folder / precision, partial(make, precision)))
        return made[precision]

    return get


@pytest.fixture(scope="session")
def built(digits: Callable[[str], Bundle]) -> Callable[[str], dict[str, BuildRecord]]:
    """``built("fp16")``: the records of all engines of that bundle for the default target."""
    made: dict[str, dict[str, BuildRecord]] = {}

    def get(precision: str) -> dict[str, BuildRecord]:
        if precision not in made:
            made[precision] = build(digits(precision), "rtx")
        return made[precision]

    return get


@pytest.fixture
def built_copy(
    digits: Callable[[str], Bundle], built: Callable[[str], dict[str, BuildRecord]], tmp_path: Path
) -> Bundle:
    """A bundle with its engines, to be spoilt."""
    built("fp16")
    return Bundle.open(shutil.copytree(digits("fp16").folder, tmp_path / "copy"))


class Samples(CalibrationDataReader):
    """What one stage was given in a recorded generation; all samples of a stage have the same inputs."""

    def __init__(self, samples: list[dict[str, np.ndarray]]) -> None:
        self.left = iter(samples)

    def get_next(self) -> dict[str, np.ndarray] | None:  # type: ignore[override]
        return next(self.left, None)


def quantized(bundle: Bundle, folder: Path, precision: str) -> Bundle:
    """A copy whose weighted matrix products are quantised, with scales of one recorded generation."""
    kind, method = QUANTIZED[precision]
    shutil.copytree(bundle.folder, folder, ignore=shutil.ignore_patterns("targets"))
    recorded = record_samples(bundle)
    stages = dict(bundle.stages)
    for name, stage in bundle.stages.items():
        path = folder / stage.graph.path
        if not {"MatMul", "Gemm"} & set(read_graph(path).operators.values()):
            continue
        # One shape a stage: histograms of tensors that change shape cannot be added up.
        inputs = [sample for (recorded_stage, _), sample in recorded.items() if recorded_stage == name][-1:]
        whole = path.with_suffix(".whole.onnx")
        quantize_static(
            path,
            whole,
            Samples(inputs),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["MatMul", "Gemm"],
            activation_type=kind,
            weight_type=kind,
            per_channel=precision == "int8",
            calibrate_method=method,
            # TensorRT dequantises no int32, which quantised biases would be.
            extra_options={"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False},
        )
        onnx.save(onnx.load(whole), path)
        whole.unlink()
        path.with_name(f"{path.name}.data").unlink()
        stages[name] = replace(stage, graph=file_spec(folder, path), weights=(), precision=precision)
    replace(bundle, folder=folder, name=precision, stages=stages).write()
    return Bundle.open(folder)
