"""``bitdance-edge serve``: serves bundles over HTTP, with a page to try them."""

import argparse
import ipaddress
import logging
import os
import sys
import time
from pathlib import Path

from bitdance_edge.commands.serve_options import OPTIONS, PREFIX, Values, add_arguments, read_values
from bitdance_edge.imports import failed_import
from bitdance_edge.interrupts import heard
from bitdance_edge.runtime.reading import read_text
from bitdance_edge.serve.address import Address, resolve
from bitdance_edge.serve.errors import ServeError
from bitdance_edge.serve.settings import BOUNDS, TOKEN_VARIABLE, ServeSettings

LOCAL = "local"  # as the address of a Ray cluster: one of this machine, which ends with the command
EXAMPLE = f"""Every option may also be given in a TOML file (--config) under its name without the dashes, or as
a variable such as {PREFIX}MAX_BATCH=4. A flag overrides a variable, and a variable the file.
SIGHUP opens the bundles again; requests that are under way are finished with the models they began with.

examples:
  bitdance-edge serve bundles/digits-4x                       # then open http://127.0.0.1:8000
  bitdance-edge serve bundles/digits-4x bundles/digits-1x --port 9000
  bitdance-edge serve bundles/shapes-16x --alias gpt-image-1=shapes-16x --nearest-size
  {TOKEN_VARIABLE}=... bitdance-edge serve bundles/digits-4x --host 0.0.0.0
  bitdance-edge serve bundles/digits-4x --engine ray --address auto --replicas 1-8 --replica-gpus 1

  curl http://127.0.0.1:8000/v1/images/generations -H 'Content-Type: application/json' -d '{{"prompt": "7"}}'
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Serve bundles over HTTP: an OpenAI-compatible API, the API of Stable Diffusion web UIs, jobs, metrics, "
        "and a page to generate images on."
    )
    parser.epilog = EXAMPLE
    add_arguments(parser)


def run(args: argparse.Namespace) -> None:
    from bitdance_edge.serve.server import Server  # needs the packages of the extra; --help does not
    from bitdance_edge.serve.service import Service

    values = read_values(args, os.environ)
    address = resolve(values["host"], values["port"])
    if values["engine"] == "ray":
        _run_on_ray(values, address)
        return
    service = Service(_settings(values, address))
    listening = address.listen()
    logging.basicConfig(level=values["log_level"].upper(), format="%(levelname)s: %(message)s", stream=sys.stderr)
    host, port = listening.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    print(f"http://{shown}:{port}", flush=True)
    _warn_if_open(service.settings, shown)
    server = Server(service)
    try:
        server.run(sockets=[listening])
    except KeyboardInterrupt:  # uvicorn raises the signal again after an orderly stop
        heard()
    if service.failure is not None:
        raise service.failure


def _run_on_ray(values: Values, address: Address) -> None:
    """Deploy the replicas; on a cluster that is ended with the command, serve until Ctrl-C."""
    try:
        from bitdance_edge.scale.serving import Scaling, deploy, stop
    except ImportError as error:
        if (failed := failed_import(error)) is None:
            raise
        raise ServeError(f"--engine ray: {failed.explained('cpu,serve,ray')}") from error
    if address.port == 0:
        raise ServeError("port is 0; replicas need one that is known to all nodes: give --port 8000, or another")
    settings = _settings(values, address)
    least, most = values["replicas"]
    scaling = Scaling(least=least, most=most, cpus=values["replica_cpus"], gpus=values["replica_gpus"])
    where = values["address"] or "auto"
    try:
        deploy(settings, scaling, host=address.host, port=address.port, cluster=None if where == LOCAL else where)
        print(f"http://{address.name}:{address.port}", flush=True)
        _warn_if_open(settings, address.name)
        if where == LOCAL:
            _until_interrupted()
        else:
            print("The replicas go on; the same command updates them, and `serve shutdown` ends them.", file=sys.stderr)
    finally:
        if where == LOCAL:
            stop()


def _until_interrupted() -> None:
    """Wait for Ctrl-C or a polite kill, which is then how the command ends."""
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        heard()


def _warn_if_open(settings: ServeSettings, shown: str) -> None:
    if not settings.local_only and settings.token is None:
        print(f"warning: anyone who can reach {shown} can use this server; set {TOKEN_VARIABLE}", file=sys.stderr)


def _settings(values: Values, address: Address) -> ServeSettings:
    local = ipaddress.ip_address(address.host).is_loopback
    settings = ServeSettings(
        bundles=tuple(values["bundles"]),
        aliases=dict(values["alias"]),
        devices=tuple(values["device"]),
        threads=values["threads"],
        memory=None if values["memory"] is None else int(values["memory"] * 1e6),
        nearest_size=values["nearest_size"],
        token=_token(values["token_file"]),
        local_only=local,
        hosts=tuple(values["allow_host"]),
        origins=tuple(values["cors"]),
        log_prompts=values["log_prompts"],
        **{name: values[name] for name in BOUNDS if name in OPTIONS},
    )
    if local and not settings.accepts_host(address.name):
        raise ServeError(
            f"host is {address.host}, by which a server of this machine alone does not answer; "
            f"use 127.0.0.1, or add --allow-host {address.name}"
        )
    return settings


def _token(file: Path | None) -> str | None:
    if file is None:
        return os.environ.get(TOKEN_VARIABLE)
    return read_text(file, "token file").strip()
