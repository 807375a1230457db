"""Makes shards over a Ray cluster: Ray Data schedules them, and workers write them into a folder that all nodes share.

Nothing of an image passes through Ray: a task is the number of a shard, its result the record. Where a worker or its
node dies, Ray starts another and schedules the shard again; as a shard is there only when it is whole, the folder ends
up with the bytes that one process would write.
"""

import json
import logging
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bitdance_edge.errors import BitDanceError, plain
from bitdance_edge.imports import failed_import
from bitdance_edge.scale.cluster import connect
from bitdance_edge.scale.errors import ScaleError
from bitdance_edge.scale.events import Added, Event, Said
from bitdance_edge.scale.maker import ShardMaker
from bitdance_edge.scale.records import Record


@dataclass(frozen=True, kw_only=True)
class RayEngine:
    """Workers of a cluster, one a GPU, or with ``threads`` CPU cores each.

    Attributes:
        folder: of the job, under the same path on every node.
        bundle: its folder on every node; None: the one that the plan names.
        address: of the cluster, ``HOST:PORT`` or "auto"; "local" starts one on this machine.
        workers: the number of workers, all the time.
        device: "auto" (GPUs where the cluster has any), "cpu" or "cuda".
        threads: of each graph on a CPU.
    """

    folder: Path
    bundle: str | None = None
    address: str = "auto"
    workers: int = 1
    device: str = "auto"
    threads: int = 1

    def __call__(self, shards: Sequence[int]) -> Generator[Event, None, None]:
        """Make shards.

        Raises:
            ScaleError: Ray is not installed, there is no such cluster, it has less than was asked for, or a worker says
                that it cannot.
        """
        ray = _import_ray()
        with _connected(ray, self.address):
            needed = self._needed(ray)
            yield Said(f"{self.workers} workers with {_listed(needed)} each, of {_listed(ray.cluster_resources())}")
            for row in self._rows(ray, shards, needed):
                found = json.loads(row["result"])
                if "failed" in found:
                    raise ScaleError(found["failed"])
                record = Record(**found)
                yield Added(record.images)
                yield record

    def _rows(self, ray: Any, shards: Sequence[int], needed: dict[str, int]) -> Iterator[dict[str, str]]:
        """Schedule the shards, one a task, and yield results as they come."""
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = context.verbose_stats_logs = False
        context.execution_no_progress_timeout_s = -1  # a shard may take hours
        numbers = ray.data.from_items([{"shard": shard} for shard in shards], override_num_blocks=len(shards))
        device = "cuda" if "GPU" in needed else "cpu"
        arguments = (str(self.folder.resolve()), self._resolved_bundle, device, self.threads)
        made = numbers.map(
            RayWorker,
            fn_constructor_args=arguments,
            compute=ray.data.ActorPoolStrategy(size=min(self.workers, len(shards)), max_tasks_in_flight_per_actor=2),
            num_cpus=needed.get("CPU", 0),
            num_gpus=needed.get("GPU", 0),
        )
        return made.iter_rows()

    @property
    def _resolved_bundle(self) -> str | None:
        """The bundle's path from everywhere: workers have another current directory."""
        return None if self.bundle is None else str(Path(self.bundle).resolve())

    def _needed(self, ray: Any) -> dict[str, int]:
        """What a worker takes of a node. Raises: ScaleError: the cluster does not have it for all of them."""
        has = ray.cluster_resources()
        on_gpu = self.device != "cpu" and (self.device != "auto" or has.get("GPU", 0) > 0)
        needed = {"GPU": 1} if on_gpu else {"CPU": self.threads}
        for name, each in needed.items():
            if each * self.workers > has.get(name, 0):
                raise ScaleError(
                    f"{self.workers} workers need {each * self.workers} {name}, and the cluster has "
                    f"{has.get(name, 0):g}; give fewer --workers, or add nodes with: ray start --address HOST:6379"
                )
        return needed


class RayWorker:
    """One worker of the cluster. What it cannot do is its result: no other attempt would do better."""

    def __init__(self, folder: str, bundle: str | None, device: str, threads: int) -> None:
        self.failure, self.maker = "", None
        try:
            self.maker = ShardMaker(Path(folder), bundle, device=device, threads=threads)
        except BitDanceError as error:
            self.failure = plain(error)

    def __call__(self, row: dict[str, int]) -> dict[str, str]:
        """Make the shard of a row; returns its record, or why it cannot be made, as JSON."""
        if self.maker is None:
            return {"result": json.dumps({"failed": self.failure})}
        try:
            return {"result": json.dumps(asdict(self.maker.make(int(row["shard"]))))}
        except BitDanceError as error:
            return {"result": json.dumps({"failed": plain(error)})}


@contextmanager
def _connected(ray: Any, address: str) -> Iterator[None]:
    """Connect to a cluster while the block runs, where this process is not connected already."""
    if ray.is_initialized():
        yield
        return
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # it warns that the progress bars are off, as was asked for
    connect(ray, address)
    try:
        yield
    finally:
        ray.shutdown()


def _import_ray() -> Any:
    try:
        import ray
        import ray.data
    except ImportError as error:
        failed = failed_import(error, "ray")
        raise ScaleError(f"--engine ray needs Ray: {failed and failed.explained('ray')}") from error
    return ray


def _listed(resources: Mapping[str, float]) -> str:
    return ", ".join(f"{resources[name]:g} {name}" for name in ("CPU", "GPU") if resources.get(name))
