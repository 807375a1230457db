"""The worker process without its server, and the server's handle on it."""

import asyncio
import multiprocessing
import threading
from multiprocessing.connection import Connection
from types import SimpleNamespace
from typing import Any

import pytest

from bitdance_edge.runtime import Request, RequestError
from bitdance_edge.runtime.errors import OutOfMemoryError
from bitdance_edge.serve import worker_handle, worker_process
from bitdance_edge.serve.work import BatchReport, Generate, Ready, Stop


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OutOfMemoryError("2 GB are not free"), "insufficient_memory"),
        (MemoryError(), "insufficient_memory"),
        (RequestError("no such class"), "invalid_request"),
        (RuntimeError("could not allocate a name"), "generation_failed"),
    ],
)
def test_a_failed_batch_is_reported_by_its_type_of_error(
    error: Exception, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class FailingPipeline:
        backend = SimpleNamespace(name="none")

        def __enter__(self) -> "FailingPipeline":
            return self

        def __exit__(self, *_: object) -> None: ...

        def times(self) -> dict[str, Any]:
            return {}

        def stream(self, *_: object) -> None:
            raise error

    monkeypatch.setattr(worker_process.Pipeline, "open", lambda *_args, **_options: FailingPipeline())
    monkeypatch.setattr(worker_process, "warm_up", lambda _pipeline: None)
    monkeypatch.setattr(worker_process.signal, "signal", lambda *_: None)  # the handlers of the tests stay
    server, worker = multiprocessing.Pipe()
    order = Generate(batch=0, model="digits", request=Request(classes=["7"]), previews=(frozenset(),), fast=(False,))
    server.send(order)
    server.send(Stop())
    worker_process.run_worker(worker, {"digits": (None, 1)}, "cpu", None)  # pyright: ignore[reportArgumentType]
    _ready, report = server.recv(), server.recv()
    assert isinstance(report, BatchReport) and report.failure == (code, str(error))


def test_a_listener_that_outlives_its_worker_says_nothing_of_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads may be scheduled late: the death of one process must not be taken for that of its successor."""
    received, late = worker_handle._received, threading.Event()

    def delayed(connection: Connection) -> object:
        report = received(connection)
        if report is None:
            late.wait()
        return report

    monkeypatch.setattr(worker_handle, "_received", delayed)
    monkeypatch.setattr(worker_handle, "run_worker", ready_until_killed)

    async def restart() -> None:
        handle = worker_handle.WorkerHandle("cpu", SimpleNamespace(models={}), None)  # pyright: ignore[reportArgumentType]
        await handle.start()
        (old,) = (thread for thread in threading.enumerate() if thread.name == f"reports-of-{handle.pid}")
        await handle.stop(patience=0)
        await handle.start()
        late.set()
        await asyncio.to_thread(old.join)
        await asyncio.sleep(0)  # what the thread passed on is done now
        told = handle.died.is_set() or not handle._reports.empty()
        await handle.stop(patience=0)
        assert not told
        await asyncio.wait_for(handle.died.wait(), 10)

    asyncio.run(restart())


def ready_until_killed(connection: Connection, *_: object) -> None:
    connection.send(Ready("none"))
    connection.recv()
    threading.Event().wait()
