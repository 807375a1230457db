"""A sequence of launches as one CUDA graph, captured on a stream by the functions of the driver.

PyCUDA has no call for graphs; ``cuda-bindings`` has. Both use the device's primary context, so a stream of one is a
stream of the other.
https://nvidia.github.io/cuda-python/cuda-bindings/latest/module/driver.html
"""

import importlib
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from bitdance_edge.runtime.backends.interface import Launch
from bitdance_edge.runtime.errors import BackendError

PATCH = "patch"  # among the stages, in a backend's report of what is a CUDA graph
A_GRAPH = "one CUDA graph"


class CaptureError(BackendError):
    """The launches cannot be captured; they can still be run one by one."""


def import_cuda_bindings() -> ModuleType:
    """Import the driver's bindings.

    Raises:
        CaptureError: they are not installed.
    """
    try:
        return importlib.import_module("cuda.bindings.driver")
    except ImportError as error:
        raise CaptureError(f"cuda-bindings cannot be imported ({error}): pip install 'bitdance-edge[cuda]'") from None


class CudaGraph:
    """Launches captured once and replayed as one, on the same stream."""

    def __init__(self, driver: Any, stream: Any, launches: Sequence[Launch]) -> None:
        """Capture; the launches are recorded, not run.

        Args:
            driver: ``cuda.bindings.driver``, or what has its functions.

        Raises:
            CaptureError: a launch does what a graph cannot hold, or the driver refuses the graph.
        """
        self.driver: Any = driver
        self.stream: Any = stream
        graph = self._capture(launches)
        try:
            _, nodes = self._checked("cuGraphGetNodes", graph)
            self.nodes = nodes
            (self.executable,) = self._checked("cuGraphInstantiate", graph, 0)  # of no flags
        finally:
            self._checked("cuGraphDestroy", graph)

    def _capture(self, launches: Sequence[Launch]) -> Any:
        # Other threads may allocate at the same time: they have their own streams.
        mode = self.driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self._checked("cuStreamBeginCapture", self.stream.handle, mode)
        failure: Exception | None = None
        try:
            for launch in launches:
                launch()
        except BackendError as error:
            failure = error
        finally:  # a failed capture has to be ended too, or the stream stays unusable
            status, graph = self.driver.cuStreamEndCapture(self.stream.handle)
        ended = status == self.driver.CUresult.CUDA_SUCCESS
        if failure is not None:
            if ended:
                self._checked("cuGraphDestroy", graph)
            raise CaptureError(str(failure)) from failure
        if not ended:
            raise CaptureError(f"cuStreamEndCapture gave {status.name}")
        return graph

    def __call__(self) -> None:
        self._checked("cuGraphLaunch", self.executable, self.stream.handle)

    def close(self) -> None:
        executable, self.executable, self.stream = self.executable, None, None
        self._checked("cuGraphExecDestroy", executable)

    def _checked(self, function: str, *arguments: Any) -> tuple[Any, ...]:
        """Call a function of the driver; returns its results without the status."""
        status, *values = getattr(self.driver, function)(*arguments)
        if status != self.driver.CUresult.CUDA_SUCCESS:
            raise CaptureError(f"{function} gave {status.name}")
        return tuple(values)
