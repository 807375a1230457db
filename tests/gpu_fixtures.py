"""A bundle with engines for the GPU of ``fake_gpu``, and the runtime's eyes turned to it."""

import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest
from fake_gpu import FakeGpu

from bitdance_edge.engines.graph import GraphFacts
from bitdance_edge.engines.shapes import shape_profiles
from bitdance_edge.engines.targets.interface import Job
from bitdance_edge.runtime import Bundle
from bitdance_edge.runtime.backends import choice
from bitdance_edge.runtime.backends.device import Device
from bitdance_edge.runtime.backends.engine_fit import engine_path
from bitdance_edge.runtime.backends.tensorrt_library import Library
from bitdance_edge.runtime.bundle.record import BuildRecord, BuiltFile, record_path, source_hashes, target_folder

TEXT = "t2i_16x_swiglu"
TARGET = "trt:current"
MAX_IMAGES = 4

Gpus = Callable[..., FakeGpu]


def write_engine(bundle: Bundle, stage: str, max_images: int, options: Mapping[str, bool] | None = None) -> None:
    """What stands for an engine, with its record as a build would leave it."""
    folder = target_folder(bundle, TARGET)
    folder.mkdir(parents=True, exist_ok=True)
    path = engine_path(folder, stage)
    path.write_bytes(f"engine of {stage}".encode())
    facts = GraphFacts(opset=bundle.opset, types=frozenset(), modules={}, operators={}, results={})
    profiles = shape_profiles(bundle, stage, max_images)
    record = BuildRecord(
        stage=stage,
        target=TARGET,
        library="tensorrt",
        library_version="11.4.0",
        devices=("8.9",),
        built_on="Fake",
        sources=source_hashes(bundle, stage),
        files=(BuiltFile.of(path),),
        precision="fp32",
        max_images=max_images,
        profiles=Job(bundle=bundle, stage=stage, facts=facts, profiles=profiles).ranges,
        layers={},
        options=options or {},
        error=0.0,
        tolerance=1e-4,
        seconds=0.0,
    )
    record_path(folder, stage).write_text(record.to_json(), encoding="utf-8")


@pytest.fixture
def gpus(exported: Callable[..., Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Gpus:
    """``gpus(opset=20, aliases=False)``: a GPU whose ``bundle`` has engines for it."""

    def make(fixture: str = "cc_4x_patch", opset: int = 24, max_images: int = MAX_IMAGES, **options) -> FakeGpu:
        folder = tmp_path / f"{fixture}-{opset}"
        bundle = Bundle.open(shutil.copytree(exported(fixture, opset).folder, folder))
        for stage in bundle.stages:
            write_engine(bundle, stage, max_images)
        gpu = FakeGpu(bundle, **options)
        monkeypatch.setitem(sys.modules, "pycuda", SimpleNamespace(driver=gpu.driver))
        monkeypatch.setitem(sys.modules, "pycuda.driver", gpu.driver)
        monkeypatch.setitem(sys.modules, "cuda.bindings.driver", gpu.bindings)
        library = Library("tensorrt", gpu.trt, None)
        monkeypatch.setattr(choice, "load_library", lambda name: library)
        monkeypatch.setattr(choice, "find_device", lambda ordinal: Device("Fake", "8.9"))
        monkeypatch.setattr(choice, "free_memory", lambda ordinal: gpu.size)
        return gpu

    return make
