"""TensorRT or TensorRT-RTX behind one face, told apart by what they can do rather than by version.

Both have the same Python API but for a few names: RTX alone has ``ComputeCapability`` (engines for GPUs that are not
here) and ``Runtime.get_engine_validity``.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

from bitdance_edge.runtime.errors import BuildError

EXTRAS = {"tensorrt_rtx": "rtx", "tensorrt": "tensorrt"}


@dataclass(frozen=True)
class Library:
    name: str
    trt: ModuleType
    logger: Any
    log: list[str]  # what the library said, newest last

    @property
    def version(self) -> str:
        return self.trt.__version__

    @property
    def builds_for_other_gpus(self) -> bool:
        return hasattr(self.trt, "ComputeCapability")

    @property
    def updates_cache_in_place(self) -> bool:
        """Whether it knows the operators of the kv24 profile: TensorRT from 10.15, every TensorRT-RTX of this API."""
        return hasattr(self.trt.LayerType, "KV_CACHE_UPDATE")

    @property
    def judges_engines(self) -> bool:
        return hasattr(self.trt.Runtime, "get_engine_validity")


@cache  # the library keeps the first logger it was given for as long as the process lives
def load_library(name: str) -> Library:
    """Import ``tensorrt_rtx`` or ``tensorrt``.

    Raises:
        BuildError: it is not installed, or its own libraries are missing.
    """
    try:
        trt = importlib.import_module(name)
    except (ImportError, OSError) as error:
        raise BuildError(f"{name} cannot be imported ({error}): pip install 'bitdance-edge[{EXTRAS[name]}]'") from None
    lines: list[str] = []
    return Library(name, trt, _make_logger(trt, lines.append), lines)


def _make_logger(trt: ModuleType, write: Callable[[str], None]) -> Any:
    """An ``ILogger`` that passes on warnings and errors; verbose lines would be millions."""
    shown = (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR, trt.ILogger.WARNING, trt.ILogger.INFO)

    class Logger(trt.ILogger):
        def log(self, severity: Any, message: str) -> None:
            if severity in shown:
                write(f"{severity.name}: {message}")

    return Logger()
