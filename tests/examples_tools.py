"""What builds and calls the examples that use nothing of this package."""

import importlib.util
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

EXAMPLES = Path(__file__).parents[1] / "examples"
JSON = Path("/usr/include/nlohmann/json.hpp")


def minimal_runtime() -> ModuleType:
    """examples/minimal_runtime.py as a module."""
    spec = importlib.util.spec_from_file_location("minimal_runtime", EXAMPLES / "minimal_runtime.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def cannot_build() -> str:
    """Why the C++ example cannot be built here; "" where it can."""
    if shutil.which("c++") is None:
        return "no C++ compiler is installed"
    if not JSON.is_file():
        return "nlohmann/json is not installed (Debian: nlohmann-json3-dev)"
    return "" if library() is not None else "the onnxruntime that is installed has no library of its own"


def library() -> Path | None:
    """ONNX Runtime's library inside its wheel."""
    spec = importlib.util.find_spec("onnxruntime")
    assert spec is not None and spec.origin is not None
    return next(Path(spec.origin).parent.glob("capi/libonnxruntime.so.*"), None)


def build(folder: Path) -> Path:
    """Build the C++ example in a folder, against the library of the wheel, which is linked there by its usual names."""
    found = library()
    assert found is not None
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        (folder / name).symlink_to(found)
    source, program = EXAMPLES / "cpp" / "minimal_runtime.cpp", folder / "minimal_runtime"
    command = ["c++", "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", str(source), "-o", str(program)]
    subprocess.run([*command, f"-L{folder}", "-lonnxruntime", f"-Wl,-rpath,{folder}"], check=True)
    return program
