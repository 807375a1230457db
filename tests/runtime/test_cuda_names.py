"""PyCUDA and cuda-bindings are not run here, but their names can be read: the code uses no other."""

import ast
import inspect
from pathlib import Path

import pytest
from fake_gpu import FakeGpu
from fake_tensorrt import Engine, ExecutionContext

from bitdance_edge.runtime import Bundle
from bitdance_edge.runtime.backends import cuda_device, cuda_graph, cuda_memory, tensorrt

NAMES = set((Path(__file__).parent / "names-pycuda-2026.1.txt").read_text().split())
# What the code asks of PyCUDA's own objects: contexts, streams, events and allocations.
METHODS = {"push", "pop", "detach", "synchronize", "retain_primary_context", "free", "handle", "wait_for_event"}
METHODS |= {"record", "query"}


def after(module: object, name: str) -> set[str]:
    """Attributes taken of a variable or attribute called ``name``."""
    tree = ast.parse(inspect.getsource(module))  # type: ignore[arg-type]
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            owner = node.value
            if (isinstance(owner, ast.Name) and owner.id == name) or (
                isinstance(owner, ast.Attribute) and owner.attr == name
            ):
                found.add(node.attr)
    return found


def test_pycuda_has_every_name() -> None:
    used = after(cuda_device, "cuda") | after(cuda_device, "event_flags") | after(cuda_device, "Context")
    assert {"mem_alloc", "pagelocked_empty", "memcpy_htod_async", "MemoryError", "DISABLE_TIMING"} <= used
    assert used <= NAMES
    assert METHODS <= NAMES
    streams = after(cuda_memory, "stream") | after(cuda_memory, "arrivals") | after(tensorrt, "stream")
    assert streams | after(cuda_memory, "copied") <= METHODS


def test_cuda_bindings_have_every_name() -> None:
    driver = pytest.importorskip("cuda.bindings.driver")
    called = {
        node.value
        for node in ast.walk(ast.parse(inspect.getsource(cuda_graph)))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("cu")
        if node.value.isidentifier()
    }
    assert {"cuStreamBeginCapture", "cuGraphInstantiate", "cuGraphLaunch", "cuGraphExecDestroy"} <= called
    for name in called | after(cuda_graph, "driver"):
        assert hasattr(driver, name), name
    assert hasattr(driver.CUstreamCaptureMode, "CU_STREAM_CAPTURE_MODE_THREAD_LOCAL")
    assert driver.CUresult.CUDA_SUCCESS.name == "CUDA_SUCCESS"


def test_the_fake_has_no_names_of_its_own(bundle: Bundle) -> None:
    gpu = FakeGpu(bundle)
    assert set(vars(gpu.driver)) <= NAMES
    driver = pytest.importorskip("cuda.bindings.driver")
    assert all(hasattr(driver, name) for name in vars(gpu.bindings))
    trt = pytest.importorskip("tensorrt_rtx")
    assert all(hasattr(trt, name) for name in vars(gpu.trt))
    for fake, real in ((Engine, trt.ICudaEngine), (ExecutionContext, trt.IExecutionContext)):
        methods = {name for name in vars(fake) if not name.startswith("_")}
        assert all(hasattr(real, name) for name in methods), methods
