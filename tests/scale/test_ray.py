"""A cluster of two nodes on this machine: shards with the bytes of one process, and two replicas of one server."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from bulking import SHARDS, copied, digests, made
from openai import OpenAI
from ray_fixtures import HEAD, Nodes
from serving import wait_until

ray = pytest.importorskip("ray")

from bitdance_edge.scale.bulk import run_job  # noqa: E402  # the modules below need ray
from bitdance_edge.scale.errors import ScaleError  # noqa: E402
from bitdance_edge.scale.events import Event  # noqa: E402
from bitdance_edge.scale.plan import Plan, make_plan  # noqa: E402
from bitdance_edge.scale.plan_file import write_plan  # noqa: E402
from bitdance_edge.scale.ray_engine import RayEngine  # noqa: E402
from bitdance_edge.scale.records import Record, sidecar  # noqa: E402
from bitdance_edge.scale.serving import Scaling, deploy  # noqa: E402
from bitdance_edge.serve.app import create_app  # noqa: E402
from bitdance_edge.serve.service import Service  # noqa: E402
from bitdance_edge.serve.settings import ServeSettings  # noqa: E402

pytestmark = [pytest.mark.ray, pytest.mark.serial]

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
    """Two nodes, until a test kills the second; this process is a driver."""
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


# The last one with two nodes.
def test_a_killed_node_costs_nothing(nodes: Nodes, job: Plan, whole: Path, tmp_path: Path) -> None:
    run_job(job, tmp_path, range(SHARDS), disturbed(tmp_path, nodes.kill_other))
    assert digests(job, tmp_path) == digests(job, whole)


# Some seconds of one core: longer than all replicas take to have a stream each.
LONG = {"prompt": "7", "n": 6, "num_inference_steps": 300, "stream": True, "partial_images": 1}
GENERATIONS = "/v1/images/generations"
PATIENCE = 300.0  # seconds: Ray starts processes, and the machine may be busy
MOST_STREAMS, WAITED = 8, 2  # at once, and seconds after each, in which several metrics are asked for
QUEUE, FLOOD = 4, 20  # requests that wait at a replica, and those that fill two queues
TWO = Scaling(least=2, most=2, cpus=0.1)


class Fleet:
    """Two replicas behind one address."""

    def __init__(self, settings: ServeSettings, port: int) -> None:
        self.settings, self.port = settings, port
        self.url = f"http://127.0.0.1:{port}"

    def deploy(self, **changes: Any) -> None:
        self.settings = replace(self.settings, **changes)
        deploy(self.settings, TWO, host="127.0.0.1", port=self.port, cluster=None)

    def get(self, path: str) -> httpx.Response:
        """Ask on a connection of its own, which goes to either replica."""
        return httpx.get(f"{self.url}{path}", timeout=PATIENCE)

    def post(self, path: str, **fields: Any) -> httpx.Response:
        return httpx.post(f"{self.url}{path}", json=fields, timeout=PATIENCE)

    @property
    def actors(self) -> dict[str, str]:
        """The actors that are replicas and alive, by the names that their metrics have."""
        names = [each["name"] for each in ray.util.list_named_actors(all_namespaces=True)]
        return {name.rsplit("#", 1)[1]: name for name in names if "#replica#" in name}

    def running(self) -> dict[str, int]:
        """Requests in workers, by replica: what the one that is asked runs now, and the others a moment ago."""
        found = {}
        for line in self.get("/metrics").text.splitlines():
            if line.startswith("bitdance_running_requests{"):
                found[line.split('replica="')[1].split('"')[0]] = int(float(line.rsplit(" ", 1)[1]))
        return {replica: number for replica, number in found.items() if replica in self.actors}

    def stream(self, **changes: Any) -> list[str]:
        """Make images, and return the names of the events that came."""
        names = []
        with httpx.stream("POST", f"{self.url}{GENERATIONS}", json=LONG | changes, timeout=PATIENCE) as answer:
            assert answer.status_code == 200
            try:
                names += [line.removeprefix("event: ") for line in answer.iter_lines() if line.startswith("event: ")]
            except httpx.TransportError:
                names.append("cut")
        return names

    def streams(self, pool: ThreadPoolExecutor) -> list[Future[list[str]]]:
        """Start streams, one after another, until every replica runs one of them: Ray chooses which gets a request."""
        started: list[Future[list[str]]] = []
        while len(started) < MOST_STREAMS:
            started.append(pool.submit(self.stream, seed=len(started)))
            with suppress(AssertionError):
                wait_until(lambda: len(busy := self.running()) >= 2 and all(busy.values()), WAITED)
                return started
        raise AssertionError(f"{MOST_STREAMS} streams, and these run: {self.running()}")


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


@pytest.fixture(scope="module")
def fleet(connected: Nodes, digits_bundle: Path) -> Iterator[Fleet]:
    limits = {"max_batch": 1, "max_steps": 1000, "queue": QUEUE, "time_limit": PATIENCE}
    settings = ServeSettings(bundles=(digits_bundle,), threads=1, **limits)
    started = Fleet(settings, free_port())
    started.deploy()
    yield started
    ray.serve.shutdown()


def test_the_document_is_that_of_one_server(fleet: Fleet) -> None:
    assert fleet.get("/openapi.json").json() == json.loads(json.dumps(create_app(Service(fleet.settings)).openapi()))
    assert fleet.get("/health").json()["status"] == "ready"
    assert fleet.post(GENERATIONS, prompt="7", n=99).json()["error"]["param"] == "n"


def test_the_openai_client_streams(fleet: Fleet) -> None:
    client = OpenAI(base_url=f"{fleet.url}/v1", api_key="none", timeout=PATIENCE)
    events = list(client.images.generate(model="digits-4x", prompt="7", stream=True, partial_images=2))
    assert [event.type for event in events][-1] == "image_generation.completed"
    assert len(events) > 1


def test_a_client_that_leaves_frees_its_place(fleet: Fleet) -> None:
    with httpx.stream("POST", f"{fleet.url}{GENERATIONS}", json=LONG, timeout=PATIENCE) as answer:
        lines = answer.iter_lines()  # which closes the answer once nothing refers to it
        next(lines)
        wait_until(lambda: sum(fleet.running().values()) == 1, PATIENCE)
    wait_until(lambda: not sum(fleet.running().values()), PATIENCE)


def test_a_full_queue_is_our_429(fleet: Fleet) -> None:
    with ThreadPoolExecutor(FLOOD) as pool:
        answers = list(pool.map(lambda seed: fleet.post(GENERATIONS, prompt="7", n=4, seed=seed), range(FLOOD)))
    refused = [answer for answer in answers if answer.status_code == 429]
    assert refused
    assert {answer.status_code for answer in answers} == {200, 429}
    assert all(answer.json()["error"]["code"] == "queue_full" and answer.headers["retry-after"] for answer in refused)


def test_a_job_posted_on_one_is_read_watched_and_cancelled_on_the_other(fleet: Fleet) -> None:
    job = fleet.post("/v1/jobs", prompt="7", n=6, num_inference_steps=1000).json()
    assert {fleet.get(f"/v1/jobs/{job['id']}").status_code for _ in range(20)} == {200}
    assert fleet.post(f"/v1/jobs/{job['id']}/cancel").json()["status"] == "cancelled"
    assert {fleet.get(f"/v1/jobs/{job['id']}").json()["status"] for _ in range(10)} == {"cancelled"}
    short = fleet.post("/v1/jobs", prompt="3").json()["id"]
    for _ in range(4):
        watched = [line for line in fleet.get(f"/v1/jobs/{short}/events").text.splitlines() if line.startswith("event")]
        assert watched[-1] == "event: job.completed"


def test_a_redeploy_cuts_nothing(fleet: Fleet) -> None:
    """Serve ends one replica after the other, each when its streams have ended."""
    with ThreadPoolExecutor(MOST_STREAMS) as pool:
        streams = fleet.streams(pool)
        job = fleet.post("/v1/jobs", prompt="7").json()["id"]  # which waits behind a stream
        assert not all(stream.done() for stream in streams)
        fleet.deploy(max_images=9)
        assert all(stream.result()[-1] == "image_generation.completed" for stream in streams)
    wait_until(lambda: fleet.get(f"/v1/jobs/{job}").json()["status"] == "completed", PATIENCE)
    assert {fleet.get("/v1/capabilities").json()["max_n"] for _ in range(10)} == {9}


def test_a_killed_replica_costs_its_own_streams_only(fleet: Fleet) -> None:
    with ThreadPoolExecutor(MOST_STREAMS) as pool:
        streams = fleet.streams(pool)
        killed = fleet.actors[next(iter(fleet.running()))]
        ray.kill(ray.get_actor(killed, namespace="serve"), no_restart=True)
        ends = [stream.result()[-1] for stream in streams]
    whole = [end for end in ends if end == "image_generation.completed"]
    assert 0 < len(whole) < len(ends), ends
    wait_until(lambda: len(fleet.running()) >= 2 and fleet.get("/health").status_code == 200, PATIENCE)
    assert fleet.post(GENERATIONS, prompt="7").status_code == 200
