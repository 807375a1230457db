"""Clients that send or read too slowly, with shorter limits than a server's."""

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn
from serving import wait_until
from starlette.types import Receive, Scope, Send

from bitdance_edge.serve import bodies, protocol
from bitdance_edge.serve.address import resolve
from bitdance_edge.serve.guard import Guard
from bitdance_edge.serve.settings import ServeSettings

ANSWER = 64 * 2**20  # bytes: more than the buffers of both ends hold
PIECE = bytes(2**20)


async def application(_scope: Scope, _receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % ANSWER)]})
    for _ in range(ANSWER // len(PIECE)):
        await send({"type": "http.response.body", "body": PIECE, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, int]]:
    """The address of a server that waits for 0.3 s where others wait for 10 or 30."""
    monkeypatch.setattr(bodies, "BODY_SECONDS", 0.3)
    monkeypatch.setattr(protocol, "HEADER_SECONDS", 0.3)
    monkeypatch.setattr(protocol, "STALL_SECONDS", 0.3)
    guarded = Guard(application, ServeSettings(bundles=(Path("none"),)), lambda _scope: {"GET", "POST"})
    server = uvicorn.Server(uvicorn.Config(guarded, http=protocol.BoundedProtocol, log_config=None, lifespan="off"))
    with resolve("127.0.0.1", 0).listen() as listening:
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        wait_until(lambda: server.started)
        yield listening.getsockname()
        server.should_exit = True
        thread.join()


def received(connection: socket.socket) -> bytes:
    """What the server sends until it closes the connection."""
    parts = []
    try:
        while part := connection.recv(2**20):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


def test_a_body_that_stays_away_is_told_so(impatient: tuple[str, int]) -> None:
    with socket.create_connection(impatient, timeout=20) as connection:
        connection.sendall(b"POST /v1/tokens HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
        answer = received(connection)
    assert answer.startswith(b"HTTP/1.1 408 ") and b'"code":"request_timeout"' in answer


def test_headers_that_stay_away_end_the_connection(impatient: tuple[str, int]) -> None:
    with socket.create_connection(impatient, timeout=20) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n")
        assert received(connection) == b""


def test_an_answer_that_is_not_read_ends_the_connection(impatient: tuple[str, int]) -> None:
    with socket.create_connection(impatient, timeout=20) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        threading.Event().wait(1.0)
        assert 0 < len(received(connection)) < ANSWER
    with socket.create_connection(impatient, timeout=20) as connection:  # and one that is read comes whole
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert len(received(connection)) > ANSWER
