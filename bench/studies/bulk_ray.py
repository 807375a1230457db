"""What Ray costs: the same job by worker processes, and over a cluster of two nodes on this machine.

    python bench/studies/bulk_ray.py bundles/digits-4x --images 2000 --work build/bulk-ray

Prints for each the CPU seconds of all its processes, those of the workers apart, and whether the shards have the same
bytes. CPU time tells what Ray adds also on a machine with other work; the seconds that pass do not.
"""

import argparse
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil

from bitdance_edge.scale.bulk import run_job
from bitdance_edge.scale.events import Engine
from bitdance_edge.scale.local import LocalEngine
from bitdance_edge.scale.plan import Plan, make_plan
from bitdance_edge.scale.ray_engine import RayEngine
from bitdance_edge.scale.verify import verify

HEAD, OTHER, STORE = "127.0.0.2", "127.0.0.3", 80 * 2**20
AGENTS = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port", "runtime_env_agent_port")
LOOK = 0.2  # seconds between two looks at the processes
WORKERS = ("RayWorker", "spawn_main")  # in their command lines


@contextmanager
def cluster() -> Iterator[float]:
    """Two nodes with a CPU each, and this process as a driver; gives the seconds that starting took."""
    import ray
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    began, nodes = time.monotonic(), Cluster()
    for address in (HEAD, OTHER):
        ports = dict(zip(AGENTS, _free_ports(address, len(AGENTS)), strict=True))
        nodes.add_node(num_cpus=1, node_ip_address=address, object_store_memory=STORE, include_dashboard=False, **ports)
    ray.init(nodes.address, _node_ip_address=HEAD, log_to_driver=False)
    try:
        yield time.monotonic() - began
    finally:
        ray.shutdown()
        nodes.shutdown()


def _free_ports(address: str, count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((address, 0))
        return [each.getsockname()[1] for each in sockets]


class Processes:
    """CPU seconds of this process and all below it, looked at again and again, as some end meanwhile."""

    def __init__(self) -> None:
        self.root, self.seen = psutil.Process(), dict[int, tuple[bool, float]]()
        self.before = {pid: seconds for pid, (_, seconds) in self.look().items()}

    def look(self) -> dict[int, tuple[bool, float]]:
        """By process: whether it is a worker, and its CPU seconds so far."""
        for process in [self.root, *self.root.children(recursive=True)]:
            try:
                times, line = process.cpu_times(), " ".join(process.cmdline())
                self.seen[process.pid] = (any(name in line for name in WORKERS), times.user + times.system)
            except psutil.Error:
                continue
        return self.seen

    def spent(self) -> tuple[float, float]:
        """CPU seconds of the workers, and of all others, since the first look."""
        found = {True: 0.0, False: 0.0}
        for pid, (worker, seconds) in self.look().items():
            found[worker] += seconds - self.before.get(pid, 0)
        return found[True], found[False]


def measured(plan: Plan, folder: Path, engine: Engine) -> dict[str, Any]:
    """Make the job into an empty folder, and measure it."""
    shutil.rmtree(folder, ignore_errors=True)
    processes, began, last = Processes(), time.monotonic(), 0.0

    def watched(shards: Any) -> Any:
        nonlocal last
        for event in engine(shards):
            if time.monotonic() - last > LOOK:
                processes.look()
                last = time.monotonic()
            yield event

    run_job(plan, folder, range(plan.shards), watched)
    seconds, (workers, others) = time.monotonic() - began, processes.spent()
    return {
        "seconds": round(seconds, 1),
        "cpu_seconds_of_workers": round(workers, 2),
        "cpu_seconds_of_others": round(others, 2),
        "cpu_ms_an_image": round(1000 * (workers + others) / plan.images, 2),
        "content": verify(folder).content,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--shard-images", type=int, default=100)
    parser.add_argument("--work", type=Path, required=True)
    args = parser.parse_args()
    plan = make_plan(args.bundle, classes="all", count=args.images // 10, seed=1, shard_images=args.shard_images)
    local, over_ray = args.work / "local", args.work / "ray"
    found = {"processes": measured(plan, local, LocalEngine(folder=local, devices=("cpu", "cpu"), threads=1))}
    with cluster() as seconds:
        found["ray"] = measured(plan, over_ray, RayEngine(folder=over_ray, workers=2))
    report = {"images": plan.images, "shards": plan.shards, "seconds_to_start_ray": round(seconds, 1), **found}
    report["same_bytes"] = found["processes"]["content"] == found["ray"]["content"]
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
