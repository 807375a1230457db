"""TensorRT or TensorRT-RTX behind one interface, told apart by what they can do rather than by version.

Both have the same Python API but for a few names: RTX alone has ``ComputeCapability`` (engines for GPUs that are not
here) and ``Runtime.get_engine_validity``.
"""

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from types import ModuleType
from typing import Any

from bitdance_edge.runtime.errors import BuildError

EXTRAS = {"tensorrt_rtx": "rtx", "tensorrt": "tensorrt"}


@dataclass(frozen=True)
class Library:
    """One of the two libraries, with the one logger that it keeps for as long as the process lives."""

    name: str
    trt: ModuleType
    logger: Any
    recordings: list[list[str]] = field(default_factory=list)  # that are open

    @contextmanager
    def recording(self) -> Iterator[list[str]]:
        """Record what the library says inside the block, newest last; lines from before it are not in it."""
        lines: list[str] = []
        self.recordings.append(lines)
        try:
            yield lines
        finally:
            self.recordings[:] = [each for each in self.recordings if each is not lines]

    def say(self, line: str) -> None:
        """Pass a line of the library on to all who record."""
        for lines in self.recordings:
            lines.append(line)

    @property
    def version(self) -> str:
        return self.trt.__version__

    @property
    def builds_for_other_gpus(self) -> bool:
        return hasattr(self.trt, "ComputeCapability")

    @property
    def updates_cache_in_place(self) -> bool:
        """Whether it knows the cache operators of opset 24: TensorRT from 10.15, every TensorRT-RTX of this API."""
        return hasattr(self.trt.LayerType, "KV_CACHE_UPDATE")

    @property
    def user_allocation(self) -> Any:
        """The builder's flag for engines whose contexts allocate nothing themselves; None: the library has none.

        A launch of TensorRT-RTX can be part of a CUDA graph only with it (release notes of 1.2).
        """
        return self.builder_flag("REQUIRE_USER_ALLOCATION")

    def builder_flag(self, name: str) -> Any:
        """A flag of the builder by its name; None: the library has none."""
        return getattr(getattr(self.trt, "BuilderFlag", None), name, None)

    @property
    def streams_engines(self) -> bool:
        """Whether a builder can write an engine as it makes it."""
        return hasattr(self.trt.Builder, "build_serialized_network_to_stream")

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
    library = Library(name, trt, None)
    return replace(library, logger=_make_logger(trt, library.say))  # both share the list


def _make_logger(trt: ModuleType, write: Callable[[str], None]) -> Any:
    """An ``ILogger`` that passes on all but verbose lines, of which there are millions."""
    shown = (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR, trt.ILogger.WARNING, trt.ILogger.INFO)

    class Logger(trt.ILogger):
        def log(self, severity: Any, message: str) -> None:
            if severity in shown:
                write(f"{severity.name}: {message}")

    return Logger()
