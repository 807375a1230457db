"""The address that a server listens on."""

import errno
import socket
from dataclasses import dataclass

from bitdance_edge.serve.errors import ServeError

PORT_ERRORS = (errno.EADDRINUSE, errno.EACCES)  # taken, or reserved for root


@dataclass(frozen=True)
class Address:
    """An address of this machine. ``name`` is what clients send as Host for it, without the port."""

    family: socket.AddressFamily
    host: str
    port: int

    @property
    def name(self) -> str:
        return f"[{self.host}]" if self.family == socket.AF_INET6 else self.host

    def listen(self) -> socket.socket:
        """Open the listening socket.

        Raises:
            ServeError: the port is taken or reserved, or the host is not this machine.
        """
        # asyncio sends without delay only on sockets that name TCP; else an answer in two parts waits some 40 ms.
        listening = socket.socket(self.family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((self.host, self.port))
            listening.listen()  # before the address is printed, so that its reader can connect
        except OSError as error:
            listening.close()
            other = "another --port" if error.errno in PORT_ERRORS else "another --host"
            raise ServeError(
                f"cannot listen on {self.host} port {self.port}: {error.strerror}; choose {other}"
            ) from None
        return listening


def resolve(host: str, port: int) -> Address:
    """Look up the address of a host.

    Raises:
        ServeError: the host is empty or unknown, or there is no such port.
    """
    if not 0 <= port <= 65535:
        raise ServeError(f"port is {port}; it must be from 0 to 65535")
    if not host.strip():
        raise ServeError("host is empty; use 127.0.0.1 for this machine only, or 0.0.0.0 for all of its addresses")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        found = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)
    except (OSError, ValueError) as error:  # UnicodeError, of what is no host name, is a ValueError
        reason = getattr(error, "strerror", None) or "it is no host name"
        raise ServeError(f"host is {host[:80]!r}, which is not found: {reason}; choose another --host") from None
    return Address(family, str(found[0][4][0]), port)
