"""The connection of this process to a Ray cluster; only this module starts or joins one."""

import logging
import os
import re
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from bitdance_edge.scale.errors import ScaleError

HOST_AND_PORT = re.compile(r"(.+):(\d{1,5})")
CONNECT_WITHIN = 10.0  # seconds


def connect(ray: Any, address: str, **settings: Any) -> None:
    """Connect to the cluster at ``address``: HOST:PORT, auto, or local, which starts one that ends with this process.

    Args:
        ray: the module.
        settings: further ones of ``ray.init``.

    Raises:
        ScaleError: there is no such cluster, or none can be started.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent to anybody
    try:
        _require_listening(address)
        with _own_signals():
            ray.init(address, log_to_driver=False, logging_level=logging.WARNING, **settings)
    except (OSError, ValueError, RuntimeError) as error:  # ConnectionError, which is Ray's, is an OSError
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        # Ray sends its token to a cluster that it finds itself, but to a given address only with this variable.
        told = address == "local" or "RAY_AUTH_MODE" in os.environ
        hint = "" if told else ". If it is there, it may ask for a token: set RAY_AUTH_MODE=token"
        raise ScaleError(
            f"no cluster at {address}: {reason}. Start one with: ray start --head, or use --address local for this "
            f"machine alone{hint}"
        ) from None


def _require_listening(address: str) -> None:
    """Find out at once whether there is anything at ``HOST:PORT``; Ray would try for minutes. Raises: OSError."""
    if found := HOST_AND_PORT.fullmatch(address):
        try:
            socket.create_connection((found[1].strip("[]"), int(found[2])), CONNECT_WITHIN).close()
        except (OverflowError, UnicodeError) as error:  # a port above 65535, a name that is none
            raise OSError(str(error)) from None


@contextmanager
def _own_signals() -> Iterator[None]:
    """Keep this program's handler of SIGTERM; that of ``ray.init`` ends the process without a message or a clean-up."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
