"""What the backends of a GPU share: a lane of work, what was made for it, and the order in which that is given back."""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from bitdance_edge.runtime.backends.cuda_device import CudaDevice
from bitdance_edge.runtime.backends.cuda_driver import DriverDevice
from bitdance_edge.runtime.backends.cuda_memory import CudaBuffer, Lane, RowCopies
from bitdance_edge.runtime.backends.interface import Captured, Launch, Memory, Stage
from bitdance_edge.runtime.bundle.dtypes import tensor_bytes


class GpuBackend:
    """One lane of a GPU, and the further lanes that were opened from it.

    A backend adds what it loads to ``stages`` and what it captures to ``captured``.
    """

    run_ahead = 1  # a patch is queued while the one before runs, so that the GPU never waits for the host

    def open_lane(self, device: CudaDevice | DriverDevice) -> None:
        self.device = device
        self.stages: list[Any] = []  # of the backend's own kind
        self.captured: list[Captured] = []
        self.siblings: list[GpuBackend] = []
        with device.current():
            self.lane = Lane(device)

    def empty(self, shape: tuple[int, ...], dtype: str, *, ahead: bool = False) -> CudaBuffer:
        return CudaBuffer(self.lane, shape, dtype, ahead)

    def overwrite(self, target: Memory, source: Memory, rows: np.ndarray) -> Launch:
        return RowCopies(self.lane, target.address, source.address, rows, tensor_bytes(target.shape, "float32"))

    def trim(self, stages: Iterable[Stage]) -> None:
        """There is nothing to give back: engines use the lane's arena in turn."""

    def current(self) -> AbstractContextManager[None]:
        return self.device.current()

    def forget(self, captured: Captured) -> None:
        """Take note that something captured was closed before the backend is."""
        if captured in self.captured:
            self.captured.remove(captured)

    def close(self) -> None:
        """Graphs and what they were captured from go before the memory that they run over, the streams after."""
        with self.device.current():
            for backend in (self, *self.siblings):
                backend.release()
        self.device.close()

    def release(self) -> None:
        """Give back all but the device itself."""
        self.lane.synchronize()
        for captured in list(self.captured):
            captured.close()
        for stage in self.stages:
            stage.close()
        self.stages.clear()
        self.lane.close()
