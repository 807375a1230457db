"""What a target must know: how a stage is built for its device, and whether it can run on this machine.

Planning, progress, checking, records and putting files in place are the same for all targets (``engines/build.py``).
To add a target, write a module with this interface and name it in ``engines/targets/__init__.py``.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from bitdance_edge.engines.graph import GraphFacts
from bitdance_edge.engines.progress import BuildWatch
from bitdance_edge.engines.shapes import ShapeProfile
from bitdance_edge.runtime.bundle.manifest import Bundle
from bitdance_edge.runtime.bundle.record import BuildRecord

# Inputs of a stage by name to its outputs by name.
Run = Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]


@dataclass(frozen=True, kw_only=True)
class Job:
    """One stage to be built, and everything that its build depends on."""

    bundle: Bundle
    stage: str
    facts: GraphFacts
    max_images: int | None = None  # None: any number
    profiles: tuple[ShapeProfile, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def graph(self) -> Path:
        """The stage's graph in the bundle."""
        return self.bundle.folder / self.bundle.stage(self.stage).graph.path

    @property
    def ranges(self) -> dict[str, dict[str, list[list[int]]]]:
        """The profiles as a record has them."""
        return {
            profile.name: {name: [list(shape) for shape in shapes] for name, shapes in profile.shapes.items()}
            for profile in self.profiles
        }


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Upper bounds of what building a stage takes, in bytes, and whether it can be built.

    ``memory_bytes`` is the largest resident size; of it ``held_bytes`` must be there, and the rest are pages of files,
    which the system can drop and read again.
    """

    output_bytes: int
    memory_bytes: int
    held_bytes: int
    refusal: str | None = None  # why it cannot be built, and the command that would work
    note: str | None = None  # a restriction of the build, for the plan


@dataclass(frozen=True, kw_only=True)
class Built:
    """What a target wrote into the folder that it was given."""

    files: Sequence[Path]  # the graph or engine first
    devices: tuple[str, ...]  # as in a record
    built_on: str = ""
    layers: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


class Target(Protocol):
    @property
    def name(self) -> str:
        """As given to ``--target``."""
        ...

    @property
    def library(self) -> str:
        """What builds: "onnxruntime", "tensorrt_rtx" or "tensorrt"."""
        ...

    @property
    def library_version(self) -> str: ...

    def stages(self, bundle: Bundle) -> list[str]:
        """The stages that are built where none are named."""
        ...

    def job(self, bundle: Bundle, stage: str, facts: GraphFacts, max_images: int) -> Job: ...

    def estimate(self, job: Job) -> Estimate: ...

    def fits_here(self, devices: Sequence[str], built_on: str) -> bool:
        """Whether a record's devices are those that this target would build for now."""
        ...

    def build(self, job: Job, folder: Path, watch: BuildWatch) -> Built:
        """Write the build of a stage into an empty folder.

        Raises:
            BuildFailure: the library refuses the stage.
        """
        ...

    def open(self, job: Job, record: BuildRecord, folder: Path) -> Run:
        """Load what was built into a folder, with its record, to be checked on this machine.

        Raises:
            BackendError: it cannot run on this machine; the message says why.
            BuildFailure: it does not load.
        """
        ...
