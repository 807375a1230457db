"""The stages of a bundle as our PyTorch modules behind the runtime's own loop: what a captured patch takes in PyTorch.

Caches and buffers are allocated once, and a patch is one ``torch.cuda.CUDAGraph``, so that neither Python nor launches
cost anything: the ceiling that ONNX Runtime and TensorRT are compared with. On a CPU nothing is captured.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from time import perf_counter
from typing import cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from bitdance_edge.export.opsets import CacheOperators
from bitdance_edge.export.signatures import stage_exports
from bitdance_edge.export.stages import Generator
from bitdance_edge.model.order import rotate, rotate_halves
from bitdance_edge.runtime import Bundle, Pipeline
from bitdance_edge.runtime.backends.choice import Choice
from bitdance_edge.runtime.backends.interface import Backend, Launch, Stage, StageTime


def rotate_by_table(x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, interleaved: bool) -> Tensor:
    turn = rotate if interleaved else rotate_halves
    return turn(x, cos[positions][:, None], sin[positions][:, None])


def update_in_place(cache: Tensor, new: Tensor, first_slot: Tensor) -> Tensor:
    slots = first_slot[:, None] + torch.arange(new.shape[2], device=new.device)  # [R, T]
    return cache.scatter_(2, slots[:, None, :, None].expand_as(new), new)


def attend(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    grouped = queries.shape[1] > keys.shape[1]
    return F.scaled_dot_product_attention(queries, keys, values, mask, enable_gqa=grouped)


OPERATORS = CacheOperators(rotate_by_table, update_in_place, attend)


class TorchBuffer:
    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    @property
    def address(self) -> int:
        return self.tensor.data_ptr()

    @property
    def nbytes(self) -> int:
        return self.tensor.nbytes

    def __getitem__(self, index: int) -> "TorchBuffer":
        return TorchBuffer(self.tensor[index])

    def write(self, values: np.ndarray) -> None:
        host = torch.as_tensor(np.ascontiguousarray(values)).to(self.tensor.dtype)
        if self.tensor.is_cuda:
            host = host.pin_memory()
        self.tensor.copy_(host.expand(self.tensor.shape), non_blocking=True)

    def fetch(self) -> "Fetched":
        return Fetched(self.tensor)

    def read(self) -> np.ndarray:
        return self.fetch().wait()

    def free(self) -> None:
        self.tensor = self.tensor[:0]


class Fetched:
    def __init__(self, tensor: Tensor) -> None:
        self.host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
        self.host.copy_(tensor, non_blocking=True)
        self.copied = torch.cuda.Event() if tensor.is_cuda else None
        if self.copied is not None:
            self.copied.record()

    def done(self) -> bool:
        return self.copied is None or self.copied.query()

    def wait(self) -> np.ndarray:
        if self.copied is not None:
            self.copied.synchronize()
        return self.host.numpy()


class TorchStage:
    def __init__(self, backend: "TorchBackend", name: str) -> None:
        self.backend, self.spec, self.time = backend, backend.bundle.stage(name), StageTime()
        self.traced = backend.exports[name]()
        self.traced.module.to(backend.device)  # tables that it computed on the CPU

    def bind(self, buffers: Mapping[str, TorchBuffer]) -> Launch:
        inputs = self.traced.arguments({tensor.name: buffers[tensor.name].tensor for tensor in self.spec.inputs})
        outputs = [buffers[tensor.name].tensor for tensor in self.spec.outputs]

        def launch() -> None:
            started = perf_counter()
            made = self.traced.module(*inputs)
            for output, values in zip(outputs, made if isinstance(made, tuple) else (made,), strict=True):
                if output.data_ptr() != values.data_ptr():  # the cache is updated in place
                    output.copy_(values)
            self.backend.calls += 1
            self.time.add(perf_counter() - started)

        return launch

    def close(self) -> None:
        """There is nothing to free."""


class TorchBackend:
    """The stages of ``model``, whose sizes and element type are those of ``bundle``, on the device it is on."""

    name = "PyTorch, captured"

    def __init__(self, bundle: Bundle, model: Generator) -> None:
        self.bundle, self.calls = bundle, 0
        parameter = next(model.parameters())
        self.device, self.run_ahead = parameter.device, 1 if parameter.is_cuda else 0
        self.exports = stage_exports(model, OPERATORS, parameter.dtype)

    def empty(self, shape: tuple[int, ...], dtype: str, *, ahead: bool = False) -> TorchBuffer:
        return TorchBuffer(torch.zeros(shape, dtype=getattr(torch, dtype), device=self.device))

    def load(self, stage: str) -> TorchStage:
        return TorchStage(self, stage)

    def capture(self, launches: Sequence[Launch]) -> "CapturedPatch":
        return CapturedPatch(self, launches)

    def overwrite(self, target: TorchBuffer, source: TorchBuffer, rows: np.ndarray) -> Launch:
        mask = torch.as_tensor(rows, device=self.device)
        mask = mask.reshape(*mask.shape, *[1] * (target.tensor.ndim - mask.ndim))

        def copy() -> None:
            target.tensor.copy_(torch.where(mask, source.tensor, target.tensor))

        return copy

    def second_lane(self) -> "TorchBackend":
        return self

    def trim(self, stages: Iterable[Stage]) -> None:
        """Nothing is given back: PyTorch has one pool for all of it."""

    def current(self) -> AbstractContextManager[None]:
        return torch.inference_mode()  # type: ignore[return-value]

    def close(self) -> None:
        """PyTorch frees what is no longer referenced."""


class CapturedPatch:
    """Launches that are run one by one the first time, and one CUDA graph from the second on."""

    def __init__(self, backend: TorchBackend, launches: Sequence[Launch]) -> None:
        self.backend, self.launches = backend, launches
        self.graph: torch.cuda.CUDAGraph | None = None
        self.warm = False

    def __call__(self) -> None:
        if self.graph is None and self.warm and self.backend.device.type == "cuda":
            calls, self.graph = self.backend.calls, torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self._run()
            self.backend.calls = calls
        if self.graph is not None:
            self.graph.replay()
            self.backend.calls += 1
            return
        self._run()
        self.warm = True

    def close(self) -> None:
        self.graph = None

    def _run(self) -> None:
        for launch in self.launches:
            launch()


def torch_pipeline(bundle: Bundle, model: Generator, images: int) -> Pipeline:
    """A pipeline of a bundle's sizes over a PyTorch model."""
    backend = TorchBackend(bundle, model)
    return Pipeline(bundle, cast(Backend, backend), Choice(backend=backend.name, device=str(backend.device)), images)
