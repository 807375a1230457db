"""The HTTP server as replicas of Ray Serve (docs.ray.io/en/latest/serve), one worker process each.

A replica is the application of ``serve/``, unchanged: its queue, its batches and its errors. Jobs and metrics of all
replicas meet in one actor.
"""

import asyncio
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.context import _get_global_client
from starlette.applications import Starlette

from bitdance_edge.runtime.bundle.manifest import Bundle
from bitdance_edge.scale.cluster import connect
from bitdance_edge.scale.errors import ScaleError
from bitdance_edge.scale.fleet_metrics import joined
from bitdance_edge.scale.job_board import JobBoard
from bitdance_edge.scale.shared_jobs import SharedJobs
from bitdance_edge.serve.address import resolve
from bitdance_edge.serve.app import create_app
from bitdance_edge.serve.service import Service
from bitdance_edge.serve.settings import TOKEN_VARIABLE, ServeSettings

APPLICATION = "bitdance-edge"
BOARD = "bitdance-edge-jobs"
NAMESPACE = "bitdance-edge"
REPORTED_EVERY = 5.0  # seconds between two reports of a replica's metrics
SPARE = 30.0  # seconds beyond a request's limit that a replica has to end
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """How many replicas there are, between two numbers by the requests in them, and what each takes of its machine."""

    least: int = 1
    most: int = 1
    cpus: float = 1.0
    gpus: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.most:
            raise ScaleError(f"replicas are {self.least}-{self.most}; give a number from 1, or LEAST-MOST")


class Replica:
    """What Ray Serve runs: a service over the jobs of all replicas.

    Args:
        digests: of the bundles by the ids of their models; a replica that finds others does not start.
    """

    def __init__(self, settings: ServeSettings, digests: Mapping[str, str]) -> None:
        logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
        self.name = serve.get_replica_context().replica_id.unique_id
        self.board = _board()
        self.service = Service(settings, SharedJobs(self._call))
        self.service.scrape = self._all_metrics
        _require_same({name: model.bundle for name, model in self.service.fleet.catalog.models.items()}, digests)
        self._reporting = asyncio.get_running_loop().create_task(self._report())

    def __serve_build_asgi_app__(self) -> Starlette:
        return create_app(self.service, supervised=True)

    async def _call(self, method: str, *arguments: Any) -> Any:
        return await getattr(self.board, method).remote(*arguments)

    async def _all_metrics(self) -> bytes:
        return joined(await self._call("report", self.name, self.service.metrics.text()))

    async def _report(self) -> None:
        while True:
            try:
                await self._call("report", self.name, self.service.metrics.text())
            except RayError as error:
                log.error("the metrics of this replica cannot be reported: %s", error)
            await asyncio.sleep(REPORTED_EVERY)


def application(settings: ServeSettings, scaling: Scaling) -> serve.Application:
    """Describe the replicas to Ray Serve.

    Raises:
        BundleError: a bundle cannot be opened here.
        ScaleError: bundles are on more than one device; each replica has one.
    """
    if len(settings.devices) > 1:
        raise ScaleError(f"devices are {', '.join(settings.devices)}; a replica has one: use --replicas for more")
    settings = replace(settings, bundles=tuple(folder.absolute() for folder in settings.bundles))
    digests = {folder.name: Bundle.open(folder).digest for folder in settings.bundles}
    fixed = scaling.least == scaling.most
    deployed = serve.deployment(
        name="replica",
        num_replicas=scaling.least if fixed else None,
        autoscaling_config=None if fixed else _by_queue(settings, scaling),
        # Our own limit answers first, with JSON: a replica may hold its queue, its batch, and those who watch jobs.
        max_ongoing_requests=settings.queue + settings.max_batch + settings.max_connections,
        graceful_shutdown_timeout_s=settings.time_limit + SPARE,
        health_check_timeout_s=60,
        ray_actor_options={"num_cpus": scaling.cpus, "num_gpus": scaling.gpus},
    )(serve.ingress()(Replica))
    return deployed.bind(settings, digests)


def app(args: dict[str, Any]) -> serve.Application:
    """Build the application of a Serve configuration file: ``import_path: bitdance_edge.scale.serving:app``.

    Args:
        args: fields of ``ServeSettings`` and, under ``scaling``, of ``Scaling``.

    Raises:
        ScaleError: a field is unknown.
    """
    return application(*read_args(args))


def read_args(args: Mapping[str, Any]) -> tuple[ServeSettings, Scaling]:
    """Read the ``args`` of a Serve configuration file; the token is in the variable ``BITDANCE_EDGE_TOKEN``.

    Raises:
        ScaleError: a field is unknown.
        ServeError: a value is not allowed.
    """
    given: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in args.items()}
    try:
        scaling = Scaling(**given.pop("scaling", {}))
        bundles = tuple(Path(folder) for folder in given.pop("bundles", ()))
        token = os.environ.get(TOKEN_VARIABLE)
        return ServeSettings(**{"bundles": bundles, "local_only": False, "token": token, **given}), scaling
    except TypeError as error:
        raise ScaleError(f"args of the application: {error}") from None


def deploy(settings: ServeSettings, scaling: Scaling, *, host: str, port: int, cluster: str | None) -> None:
    """Start the replicas and wait until they are ready; those of an earlier deployment finish what they accepted.

    Args:
        cluster: address of a Ray cluster, or ``auto``; None: one is started on this machine.

    Raises:
        ScaleError: there is no such cluster, its replicas have another address, or they do not start.
        ServeError: the address cannot be listened on.
    """
    described = application(settings, scaling)
    if not ray.is_initialized():
        connect(ray, cluster or "local", namespace=NAMESPACE, include_dashboard=False)
    _require_address(host, port)
    _board()
    try:
        serve.start(http_options={"host": host, "port": port})
        serve.run(described, name=APPLICATION, route_prefix="/")
    except (RuntimeError, TimeoutError) as error:  # TimeoutError: of the proxies in front of the replicas
        reason = _reason() or str(error)
        raise ScaleError(f"the replicas did not start: {reason}") from None


def stop() -> None:
    """End this process's connection to the cluster; a cluster that it started ends with it, and its requests too."""
    ray.shutdown()


def _require_address(host: str, port: int) -> None:
    """Compare an address with that of the replicas that the cluster runs, or else make sure that it is free here.

    Ray would ignore another one, and would wait for a minute where it is taken.
    """
    running = _get_global_client(raise_if_no_controller_running=False)
    if running is None:
        resolve(host, port).listen().close()
        return
    old = running.http_config
    if (old.host, old.port) != (host, port):
        raise ScaleError(
            f"the cluster serves on {old.host} port {old.port} already, and not on {host} port {port}; give "
            f"--host {old.host} --port {old.port}, or end what it serves with: serve shutdown"
        )


def _by_queue(settings: ServeSettings, scaling: Scaling) -> dict[str, Any]:
    """Another replica once each holds more than a full batch, one fewer when that is long over."""
    return {
        "min_replicas": scaling.least,
        "max_replicas": scaling.most,
        "target_ongoing_requests": settings.max_batch,
        "upscale_delay_s": 10,
        "downscale_delay_s": 300,
    }


def _board() -> Any:
    """The actor that all replicas share; the first that asks starts it."""
    shared = {"name": BOARD, "namespace": NAMESPACE, "get_if_exists": True, "lifetime": "detached"}
    return ray.remote(JobBoard).options(num_cpus=0, max_concurrency=10_000, max_restarts=-1, **shared).remote()


def _require_same(bundles: Mapping[str, Bundle], digests: Mapping[str, str]) -> None:
    for name, bundle in bundles.items():
        if (wanted := digests.get(name)) != bundle.digest:
            raise ScaleError(
                f"{bundle.folder} has the digest {bundle.digest[:12]} here and {str(wanted)[:12]} at the deployment: "
                "copy the same bundle to every machine"
            )


def _reason() -> str:
    """What the first replica that failed said."""
    found = serve.status().applications.get(APPLICATION)
    messages = [deployment.message for deployment in found.deployments.values()] if found else []
    return next((message for message in messages if message), "")
