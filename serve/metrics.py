"""The metrics of a server in Prometheus' text format; names and units follow prometheus.io/docs/practices/naming."""

import os
from collections.abc import Callable, Iterable

import psutil
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from bitdance_edge.serve.work import BatchReport

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """One registry for each server, so that several can run in one process."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.images = Counter("bitdance_images", "Images made", ["model"], registry=registry)
        self.patches = Counter("bitdance_patches", "Patches made, counted for each image", ["model"], registry=registry)
        self.requests = Counter("bitdance_requests", "Accepted requests by outcome", ["outcome"], registry=registry)
        self.refused = Counter("bitdance_refused", "Requests refused because the queue was full", registry=registry)
        self.stage_seconds = Counter(
            "bitdance_stage_seconds", "Seconds in each stage of the network", ["model", "stage"], registry=registry
        )
        self.stage_launches = Counter(
            "bitdance_stage_launches", "Launches of each stage", ["model", "stage"], registry=registry
        )
        self.batch_images = Histogram(
            "bitdance_batch_images", "Images of a batch", buckets=(1, 2, 4, 8, 16, 32, 64), registry=registry
        )
        self.batch_seconds = Histogram(
            "bitdance_batch_seconds", "Seconds of a batch", buckets=SECONDS, registry=registry
        )
        self.wait_seconds = Histogram(
            "bitdance_wait_seconds", "Seconds from acceptance to a worker", buckets=SECONDS, registry=registry
        )
        self.waiting = Gauge("bitdance_queue_requests", "Requests that are waiting", registry=registry)
        self.capacity = Gauge("bitdance_queue_capacity_requests", "Requests that may wait", registry=registry)
        self.running = Gauge("bitdance_running_requests", "Requests in a worker", registry=registry)
        self.restarts = Counter("bitdance_worker_restarts", "Restarts of workers", registry=registry)

    def batch_done(self, model: str, images: int, done: BatchReport) -> None:
        """Count a batch that has ended."""
        self.batch_images.observe(images)
        self.batch_seconds.observe(done.seconds)
        for stage, spent in done.stages.items():
            self.stage_seconds.labels(model, stage).inc(spent.seconds)
            self.stage_launches.labels(model, stage).inc(spent.launches)

    def watch_memory(self, workers: Callable[[], Iterable[tuple[str, int | None]]]) -> None:
        """Report the resident memory of the server and of its workers, given as (name, pid), at each scrape."""
        self.registry.register(_Memory(workers))

    def text(self) -> bytes:
        """The metrics in Prometheus' text format."""
        return generate_latest(self.registry)


class _Memory(Collector):
    def __init__(self, workers: Callable[[], Iterable[tuple[str, int | None]]]) -> None:
        self.workers = workers

    def collect(self) -> Iterable[GaugeMetricFamily]:
        family = GaugeMetricFamily("bitdance_memory_bytes", "Resident memory of each process", labels=["process"])
        for name, pid in [("server", os.getpid()), *self.workers()]:
            try:
                resident = psutil.Process(pid).memory_info().rss if pid is not None else 0
            except psutil.NoSuchProcess:
                resident = 0
            family.add_metric([name], resident)
        yield family
