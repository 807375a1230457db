"""What a contender makes, and what that cost its process."""

import os
import resource
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from bitdance_edge.bench.bits import Predictions


@dataclass
class StageSeconds:
    launches: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Image:
    """Tokens int8 ``[B, K, C]``, pixels uint8 ``[B, H, W, 3]``, and the wall time of each stage by itself.

    ``predictions``: of a reference, before their sign is taken.
    """

    tokens: np.ndarray
    pixels: np.ndarray
    stages: dict[str, StageSeconds]
    predictions: Predictions | None = None


def measured(make: Callable[[], Image]) -> tuple[Image, dict[str, Any]]:
    """Make an image and return it with its wall and CPU seconds (user and system, of all threads of this process)."""
    cpu, wall = cpu_seconds(), perf_counter()
    image = make()
    wall, cpu = perf_counter() - wall, cpu_seconds() - cpu
    stages = {name: {"launches": s.launches, "seconds": s.seconds} for name, s in image.stages.items()}
    return image, {"wall": wall, "cpu": cpu, "stages": stages}


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def busy_seconds() -> float:
    """Return the CPU seconds of all processes of this machine since it started (user, nice, system)."""
    user, nice, system = Path("/proc/stat").read_text(encoding="utf-8").split(maxsplit=4)[1:4]
    return (int(user) + int(nice) + int(system)) / os.sysconf("SC_CLK_TCK")


def memory(entry: str) -> int:
    """Return bytes of this process: ``VmRSS`` now, ``VmHWM`` at its peak (not that of its parent, as getrusage's)."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{entry}:"):
            return int(line.split()[1]) * 1024
    raise ValueError(entry)


def library_bytes() -> int:
    """Return bytes of shared libraries that this process has in memory: their code is loaded when it first runs."""
    total, library = 0, False
    with Path("/proc/self/smaps").open(encoding="utf-8") as lines:  # by line: the whole text would count in the peak
        for line in lines:
            name, *values = line.split()
            if not name.endswith(":"):  # the head of a mapping: addresses, permissions, offset, device, inode and file
                library = len(values) > 4 and ".so" in Path(values[4]).suffixes
            elif name == "Rss:" and library:
                total += int(values[0]) * 1024
    return total
