"""CUDA's and cuDNN's libraries where pip or PyTorch put them, loaded before ONNX Runtime asks the system for them.

ONNX Runtime's own search looks only beside its own folder.
https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html#preload-dlls
"""

import ctypes
import importlib.util
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

log = logging.getLogger(__name__)

# In the order in which they need each other; {} is CUDA's major version.
LIBRARIES = ("libcudart.so.{}", "libcublasLt.so.{}", "libcublas.so.{}", "libcurand.so.10", "libcudnn.so.9")


def load_cuda_libraries(version: str) -> list[str]:
    """Load what the CUDA provider needs, from where the system has it or else from a Python package.

    Args:
        version: of CUDA, as ONNX Runtime was built for it: "13.0".

    Returns:
        The libraries that are nowhere.
    """
    missing = []
    for pattern in LIBRARIES:
        name = pattern.format(version.partition(".")[0])
        places = [name, *(str(folder / name) for folder in package_folders() if (folder / name).is_file())]
        if not any(_loads(place) for place in places):
            missing.append(name)
    return missing


def package_folders() -> Iterator[Path]:
    """Folders of shared libraries in NVIDIA's packages (``nvidia/*/lib``) and in PyTorch, by ``sys.path``."""
    for entry in sys.path:
        yield from sorted((Path(entry) / "nvidia").glob("*/lib"))
    torch = importlib.util.find_spec("torch")  # found, not imported
    for folder in (torch.submodule_search_locations or ()) if torch is not None else ():
        yield from sorted((Path(folder).parent / "nvidia").glob("*/lib"))
        yield Path(folder) / "lib"


def _loads(place: str) -> bool:
    try:
        ctypes.CDLL(place, mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        log.debug("%s is not loaded: %s", place, error)
        return False
    return True
