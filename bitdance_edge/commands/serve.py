"""``bitdance-edge serve``: serves bundles over HTTP, with a page to try them."""

import argparse
import errno
import ipaddress
import logging
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

from bitdance_edge.commands.common import add_threads_argument
from bitdance_edge.commands.values import number, path, whole
from bitdance_edge.interrupts import heard
from bitdance_edge.runtime.reading import read_text
from bitdance_edge.runtime.request import MAX_COUNT, MAX_STEPS
from bitdance_edge.serve.errors import ServeError
from bitdance_edge.serve.settings import ServeSettings

TOKEN_VARIABLE = "BITDANCE_EDGE_TOKEN"
DEFAULTS = ServeSettings(bundles=())
SHORTEST, LONGEST = 1e-3, 1e6  # seconds of a setting
PORT_ERRORS = (errno.EADDRINUSE, errno.EACCES)  # taken, or reserved for root
NUMBERS: dict[str, tuple[Callable[[str], float], str]] = {
    "queue": (whole(1), "requests that may wait; more are refused with 429"),
    "max_batch": (whole(1, MAX_COUNT), "images in one batch, at most"),
    "batch_window": (
        number(0, LONGEST, unit=" of seconds"),
        "seconds that a free worker waits for more requests to batch",
    ),
    "time_limit": (number(SHORTEST, LONGEST, unit=" of seconds"), "seconds a request may take, including its wait"),
    "max_images": (whole(1, MAX_COUNT), "images of one request, at most"),
    "max_steps": (whole(1, MAX_STEPS), "sampling steps of one request, at most"),
    "max_prompt": (whole(1), "characters of a prompt, at most"),
    "max_body": (whole(1), "bytes of a request body, at most"),
    "keep_alive": (
        number(SHORTEST, LONGEST, unit=" of seconds"),
        "seconds of silence on a stream before a keep-alive comment is sent",
    ),
    "grace": (number(0, LONGEST, unit=" of seconds"), "seconds that a stopping server waits for its requests"),
}
EXAMPLE = f"""examples:
  bitdance-edge serve bundles/digits-4x                       # then open http://127.0.0.1:8000
  bitdance-edge serve bundles/digits-4x bundles/digits-1x --port 9000
  {TOKEN_VARIABLE}=... bitdance-edge serve bundles/digits-4x --host 0.0.0.0

  curl http://127.0.0.1:8000/v1/images/generations -H 'Content-Type: application/json' -d '{{"prompt": "7"}}'
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Serve bundles over HTTP: an OpenAI-compatible API, jobs, metrics, and a page to generate images on."
    )
    parser.epilog = EXAMPLE
    parser.add_argument(
        "bundles", nargs="+", type=path, metavar="BUNDLE", help="folder of a bundle; the first is the default model"
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1: this machine only)"
    )
    parser.add_argument(
        "--port",
        type=whole(0, 65535),
        default=8000,
        help="port to listen on; 0: any free port, which is printed (default 8000)",
    )
    parser.add_argument(
        "--device",
        action="append",
        dest="devices",
        help="as for generate; repeat it to start one worker per device (default auto)",
    )
    add_threads_argument(parser)
    for name, (kind, meaning) in NUMBERS.items():
        default = getattr(DEFAULTS, name)
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, type=kind, default=default, help=f"{meaning} (default {default})")
    parser.add_argument(
        "--memory",
        type=number(1, 1e9, unit=" of MB"),
        metavar="MB",
        help="memory that generation may use (default: what is free)",
    )
    parser.add_argument(
        "--token-file", type=path, help=f"file with the bearer token to require (default: {TOKEN_VARIABLE})"
    )
    parser.add_argument("--log-level", choices=["info", "warning", "error"], default="info", help="(default info)")
    parser.add_argument("--log-prompts", action="store_true", help="write prompts into the log")


def run(args: argparse.Namespace) -> None:
    from bitdance_edge.serve.server import Server  # needs the packages of the extra; --help does not
    from bitdance_edge.serve.service import Service

    service = Service(_settings(args))
    listening = _listen(args.host, args.port)
    logging.basicConfig(level=args.log_level.upper(), format="%(levelname)s: %(message)s", stream=sys.stderr)
    host, port = listening.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    print(f"http://{shown}:{port}", flush=True)
    if not service.settings.local_only and service.settings.token is None:
        print(f"warning: anyone who can reach {shown} can use this server; set {TOKEN_VARIABLE}", file=sys.stderr)
    server = Server(service)
    try:
        server.run(sockets=[listening])
    except KeyboardInterrupt:  # uvicorn raises the signal again after an orderly stop
        heard()
    if service.failure is not None:
        raise service.failure


def _settings(args: argparse.Namespace) -> ServeSettings:
    return ServeSettings(
        bundles=tuple(args.bundles),
        devices=tuple(args.devices or ["auto"]),
        threads=args.threads,
        memory=None if args.memory is None else int(args.memory * 1e6),
        token=_token(args.token_file),
        local_only=_is_local(args.host),
        log_prompts=args.log_prompts,
        **{name: getattr(args, name) for name in NUMBERS},
    )


def _token(file: Path | None) -> str | None:
    if file is None:
        return os.environ.get(TOKEN_VARIABLE)
    return read_text(file, "token file").strip()


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _listen(host: str, port: int) -> socket.socket:
    """Open the listening socket. Raises: ServeError: the port is taken or reserved, or the host is not this machine."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen()  # before the address is printed, so that its reader can connect
    except OSError as error:
        listening.close()
        other = "another --port" if error.errno in PORT_ERRORS else "another --host"
        raise ServeError(f"cannot listen on {host} port {port}: {error.strerror}; choose {other}") from None
    return listening
