"""Shards over a cluster of two nodes on this machine: the bytes of one process, whatever is killed meanwhile."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path

import psutil
import pytest
from bulking import SHARDS, copied, digests, made
from ray_fixtures import HEAD, Nodes

from bitdance_edge.scale.bulk import run_job
from bitdance_edge.scale.errors import ScaleError
from bitdance_edge.scale.events import Event
from bitdance_edge.scale.plan import Plan, make_plan
from bitdance_edge.scale.plan_file import write_plan
from bitdance_edge.scale.ray_engine import RayEngine
from bitdance_edge.scale.records import Record, sidecar

pytestmark = [pytest.mark.ray, pytest.mark.serial]  # in the process that has the other tests over the cluster

DRIVER = """
import sys
from pathlib import Path
import ray
from bitdance_edge.scale.bulk import run_job
from bitdance_edge.scale.plan_file import job_plan
from bitdance_edge.scale.ray_engine import RayEngine

ray.init(sys.argv[1], _node_ip_address=sys.argv[2], log_to_driver=False)
folder = Path(sys.argv[3])
plan = job_plan(folder)
run_job(plan, folder, range(plan.shards), RayEngine(folder=folder, workers=2))
"""


@pytest.fixture(scope="module")
def nodes(connected: Nodes) -> Nodes:
    """Two nodes, the second of which the last test kills; this process is a driver."""
    connected.start_other()
    return connected


def disturbed(folder: Path, disturb: Callable[[], object]) -> Callable[[Sequence[int]], Generator[Event, None, None]]:
    """An engine of two workers that is disturbed once, when its first shard is made."""

    def engine(shards: Sequence[int]) -> Generator[Event, None, None]:
        waiting = True
        for event in RayEngine(folder=folder, workers=2)(shards):
            yield event
            if waiting and isinstance(event, Record):
                waiting = False
                disturb()

    return engine


def kill_a_worker() -> None:
    """Kill one of the workers, which are below the nodes that this process started."""
    below = psutil.Process().children(recursive=True)
    next(process for process in below if "RayWorker" in " ".join(process.cmdline())).kill()


# The first one: nothing is connected yet.
def test_no_cluster_is_said_with_what_starts_one(job: Plan, whole: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    folder = copied(job, whole, tmp_path / "partial", range(10))
    with pytest.raises(ScaleError, match=r"no cluster at 127\.0\.0\.9:1: .*ray start --head"):
        run_job(job, folder, range(SHARDS), RayEngine(folder=folder, address="127.0.0.9:1"))


def test_two_nodes_write_the_bytes_of_one_process(nodes: Nodes, job: Plan, whole: Path, tmp_path: Path) -> None:
    said: list[str] = []
    outcome = run_job(job, tmp_path, range(SHARDS), RayEngine(folder=tmp_path, workers=2), said.append)
    assert outcome.made == SHARDS and outcome.manifest is not None
    assert digests(job, tmp_path) == digests(job, whole)
    assert "2 workers with 1 CPU each, of 4 CPU" in said
    assert sidecar(job, tmp_path, 5).read_bytes() == sidecar(job, whole, 5).read_bytes()


def test_a_killed_worker_costs_nothing(nodes: Nodes, job: Plan, whole: Path, tmp_path: Path) -> None:
    run_job(job, tmp_path, range(SHARDS), disturbed(tmp_path, kill_a_worker))
    assert digests(job, tmp_path) == digests(job, whole)


def test_a_killed_driver_and_damage_cost_nothing(nodes: Nodes, job: Plan, whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "job"
    folder.mkdir()
    write_plan(job, folder)
    driver = [sys.executable, "-c", DRIVER, nodes.address, HEAD, str(folder)]
    process = subprocess.Popen(driver, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 150
    while len(list(folder.glob("0*.json"))) < 3:
        assert process.poll() is None and time.monotonic() < end, process.communicate()[1]
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    made_by_then = sorted(folder.glob("0*.json"))
    first, second = (job.file(int(path.stem)) for path in made_by_then[:2])
    os.truncate(folder / first, 1000)
    other = make_plan(job.bundle, classes=[0], count=SHARDS * 8, shard_images=8, settings={"steps": 1}, seed=99)
    foreign = made(other, tmp_path / "other") / second
    for suffix in (".tar", ".json"):
        shutil.copy(foreign.with_suffix(suffix), folder)
    run_job(job, folder, range(SHARDS), RayEngine(folder=folder, workers=2))
    assert digests(job, folder) == digests(job, whole)


def test_what_a_worker_cannot_do_is_said(nodes: Nodes, job: Plan, whole: Path, tmp_path: Path) -> None:
    folder = copied(job, whole, tmp_path / "partial", range(10))
    with pytest.raises(ScaleError, match="no bundle at /nowhere"):
        run_job(job, folder, range(SHARDS), RayEngine(folder=folder, bundle="/nowhere"))
    with pytest.raises(ScaleError, match="5 workers need 5 CPU, and the cluster has 4; give fewer --workers"):
        run_job(job, folder, range(SHARDS), RayEngine(folder=folder, workers=5))
    with pytest.raises(ScaleError, match="1 workers need 1 GPU"):
        run_job(job, folder, range(SHARDS), RayEngine(folder=folder, device="cuda"))
    assert not list(folder.glob("0001*"))


# The last one: the node is not there afterwards.
def test_a_killed_node_costs_nothing(nodes: Nodes, job: Plan, whole: Path, tmp_path: Path) -> None:
    run_job(job, tmp_path, range(SHARDS), disturbed(tmp_path, nodes.kill_other))
    assert digests(job, tmp_path) == digests(job, whole)
