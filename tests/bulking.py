"""Jobs of twelve small shards, and the ways in which tests make them."""

import hashlib
import shutil
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitdance_edge.scale.bulk import run_job
from bitdance_edge.scale.events import Added, Event
from bitdance_edge.scale.maker import ShardMaker
from bitdance_edge.scale.plan import Plan, make_plan
from bitdance_edge.scale.records import sidecar

SHARDS, IMAGES = 12, 8


@dataclass(frozen=True)
class InThisProcess:
    """The engine that has nothing between plan and pipeline: what all others are compared with."""

    folder: Path

    def __call__(self, shards: Sequence[int]) -> Generator[Event, None, None]:
        maker = ShardMaker(self.folder, threads=1)
        try:
            for shard in shards:
                record = maker.make(shard)
                yield Added(record.images)
                yield record
        finally:
            maker.close()


def small_plan(bundle: Path, file_format: str = "tar", **changed: Any) -> Plan:
    """Twelve shards of eight images of four classes, in launches of five and three, with one sampling step."""
    fields = {"count": SHARDS * IMAGES // 4, "seed": 7, "images_at_once": 5, "shard_images": IMAGES, **changed}
    settings = {"steps": 1, **fields.pop("settings", {})}
    return make_plan(str(bundle), classes=[0, 1, 2, 3], file_format=file_format, settings=settings, **fields)


def made(plan: Plan, folder: Path) -> Path:
    """Make a whole job in this process; returns its folder."""
    run_job(plan, folder, range(plan.shards), InThisProcess(folder))
    return folder


def digests(plan: Plan, folder: Path) -> list[str]:
    """The SHA-256 of each shard's file."""
    return [hashlib.sha256((folder / plan.file(i)).read_bytes()).hexdigest() for i in range(plan.shards)]


def copied(plan: Plan, source: Path, target: Path, shards: Sequence[int]) -> Path:
    """A folder as an interrupted run left it: the plan, and these shards with their sidecars."""
    target.mkdir()
    files = [
        source / "plan.json",
        *(source / plan.file(i) for i in shards),
        *(sidecar(plan, source, i) for i in shards),
    ]
    for file in files:
        shutil.copy(file, target)
    return target
