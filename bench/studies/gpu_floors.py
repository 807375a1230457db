"""What a machine can do at best, and the least time of a stage that follows from its bytes and its operations."""

import time
from collections.abc import Mapping
from dataclasses import dataclass

from bitdance_edge.bench.operations import GraphCosts
from bitdance_edge.runtime.bundle.manifest import Bundle


@dataclass(frozen=True)
class Machine:
    """Measured in this run: bytes a second of a copy (read and written), operations a second of a product."""

    name: str
    copy_bytes: float
    matrix_operations: float
    matrix_type: str


def measure_machine(device: str) -> Machine:
    """Time a large copy and a large matrix product in PyTorch; the best of several."""
    import torch

    on_gpu = device == "cuda"
    dtype = torch.float16 if on_gpu else torch.float32
    elements, side = (2**29, 8192) if on_gpu else (2**24, 1024)
    source = torch.ones(elements, dtype=torch.float16, device=device)
    target = torch.empty_like(source)
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    product = torch.empty_like(left)

    def best(work) -> float:
        seconds = []
        for _ in range(6):
            if on_gpu:
                torch.cuda.synchronize()
            started = time.perf_counter()
            for _ in range(5):
                work()
            if on_gpu:
                torch.cuda.synchronize()
            seconds.append((time.perf_counter() - started) / 5)
        return min(seconds)

    copied = 2 * source.nbytes / best(lambda: target.copy_(source))
    multiplied = 2 * side**3 / best(lambda: torch.matmul(left, right, out=product))
    name = torch.cuda.get_device_name() if on_gpu else "CPU"
    return Machine(name, copied, multiplied, str(dtype).removeprefix("torch."))


@dataclass(frozen=True)
class StageCost:
    """Of one launch: bytes that must be read or written once, and operations of its matrix products."""

    bytes: int
    operations: int

    def floor_ms(self, machine: Machine) -> float:
        return 1000 * max(self.bytes / machine.copy_bytes, self.operations / machine.matrix_operations)


def stage_cost(bundle: Bundle, stage: str, sizes: Mapping[str, int]) -> StageCost:
    """Count weights, inputs and outputs once (the cache as read: all of it) and no intermediate tensors."""
    spec = bundle.stage(stage)
    moved = spec.weight_bytes
    for tensor in (*spec.inputs, *spec.outputs):
        if not tensor.name.startswith("present."):  # written for a few slots only
            moved += tensor.bytes(sizes)
    return StageCost(moved, GraphCosts(bundle.folder / spec.graph.path).cost(sizes).operations)
