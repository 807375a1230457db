"""A bundle with engines for the GPU of ``fake_gpu``, and the runtime's eyes turned to it."""

import hashlib
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from fake_gpu import FakeGpu

from bitdance_edge.engines.shapes import shape_profiles
from bitdance_edge.runtime import Bundle
from bitdance_edge.runtime.backends import choice
from bitdance_edge.runtime.backends.device import Device
from bitdance_edge.runtime.backends.tensorrt_library import Library
from bitdance_edge.runtime.bundle.sidecar import Sidecar, engine_path, onnx_hashes, sidecar_path

TEXT = "t2i_16x_swiglu"
TARGET = "trt-current"
MAX_IMAGES = 4

Gpus = Callable[..., FakeGpu]


def write_engine(bundle: Bundle, stage: str, max_images: int) -> None:
    """What stands for an engine, with its sidecar as a build would leave it."""
    path = engine_path(bundle, TARGET, stage)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = f"engine of {stage}".encode()
    path.write_bytes(content)
    profiles = {
        profile.name: {name: [list(shape) for shape in shapes] for name, shapes in profile.shapes.items()}
        for profile in shape_profiles(bundle, stage, max_images)
    }
    sidecar = Sidecar(
        stage=stage,
        target="trt:current",
        library="tensorrt",
        library_version="11.4.0",
        capabilities=("8.9",),
        device="Fake",
        onnx=onnx_hashes(bundle, stage),
        max_images=max_images,
        profiles=profiles,
        precision="fp32",
        layers={},
        options={},
        bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        seconds=0.0,
    )
    sidecar_path(path).write_text(sidecar.to_json())


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
        library = Library("tensorrt", gpu.trt, None, log=[])
        monkeypatch.setattr(choice, "load_library", lambda name: library)
        monkeypatch.setattr(choice, "find_device", lambda ordinal: Device("Fake", "8.9"))
        monkeypatch.setattr(choice, "free_memory", lambda ordinal: gpu.size)
        return gpu

    return make
