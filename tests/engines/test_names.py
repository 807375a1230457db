"""Full TensorRT cannot be installed here, but its Python module's names can be read: the code uses no other."""

import ast
from pathlib import Path

import pytest
import tensorrt_rtx

ROOT = Path(__file__).parents[2]
FILES = [
    *(ROOT / "engines").rglob("*.py"),
    *(ROOT / "runtime" / "backends" / f"{name}.py" for name in ("engine_fit", "tensorrt_library", "tensorrt")),
]

# Names behind ``Library.builds_for_other_gpus``, ``judges_engines`` and ``hasattr``, which full TensorRT does not have.
RTX_ONLY = {
    "ComputeCapability",
    "num_compute_capabilities",
    "set_compute_capability",
    "EngineValidity",
    "INVALID",
    "EngineInvalidityDiagnostics",
    "MALFORMED_ENGINE",
    "VERSION_MISMATCH",
    "UNSUPPORTED_CC",
    "OLD_CUDA_DRIVER",
    "OLD_CUDA_RUNTIME",
    "INSUFFICIENT_GPU_MEMORY",
    "CUDA_ERROR",
    "engine_header_size",
    "get_engine_validity",
    "DynamicShapesKernelSpecializationStrategy",
    "EAGER",
    "dynamic_shapes_kernel_specialization_strategy",
    "is_stream_capturable",
}
# Attributes of Python's own objects that some class of TensorRT has too.
PYTHON = {
    "append",
    "clear",
    "insert",
    "max",
    "pop",
    "read",
    "remove",
    "start",
    "update",
    "write",
    "engine",
    "value",
    "uint8",
}


def attributes() -> set[str]:
    trees = [ast.parse(path.read_text()) for path in FILES]
    return {node.attr for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


def after_trt() -> set[str]:
    """Names reached from a variable or attribute called ``trt``, whether RTX has them or not."""
    found = set()
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            chain = []
            while isinstance(node, ast.Attribute):
                chain.append(node.attr)
                node = node.value
            if isinstance(node, ast.Name):
                chain.append(node.id)
            if "trt" in chain:
                found |= set(chain[: chain.index("trt")])
    return found


def rtx_names() -> set[str]:
    classes = [value for value in vars(tensorrt_rtx).values() if isinstance(value, type)]
    return {*dir(tensorrt_rtx), *(name for each in classes for name in dir(each))}


def used() -> set[str]:
    names = (attributes() & rtx_names()) | after_trt()
    return {name for name in names if not name.startswith("__")} - PYTHON


@pytest.mark.parametrize("version", ["10.16", "11.4"])
def test_full_tensorrt_has_every_name(version: str) -> None:
    there = (Path(__file__).parent / f"names-{version}.txt").read_text().split()

    def found(name: str) -> bool:
        # A linker stores a string that ends another only once: "desc" inside "get_tensor_format_desc".
        return name in there or any(other.endswith(name) for other in there)

    missing = sorted(name for name in used() - RTX_ONLY if not found(name))
    assert not missing, f"tensorrt {version} has no {missing}"


@pytest.mark.parametrize("version", ["10.16", "11.4"])
def test_names_of_rtx_alone_are_not_there(version: str) -> None:
    """Or they would need no guard, and the list above would be stale."""
    there = set((Path(__file__).parent / f"names-{version}.txt").read_text().split())
    assert {"ComputeCapability", "EngineValidity", "get_engine_validity", "set_compute_capability"}.isdisjoint(there)
    assert used() >= RTX_ONLY


def test_the_code_uses_names_at_all() -> None:
    assert {"OnnxParser", "KV_CACHE_UPDATE", "get_aliased_input_tensor", "decomposable", "set_shape"} <= used()
    assert after_trt() <= rtx_names()
