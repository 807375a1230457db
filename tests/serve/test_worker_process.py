"""The worker process without its server: the code that a failed batch is reported with."""

import multiprocessing
from types import SimpleNamespace
from typing import Any

import pytest

from bitdance_edge.runtime import Request, RequestError
from bitdance_edge.runtime.errors import OutOfMemoryError
from bitdance_edge.serve import worker_process
from bitdance_edge.serve.work import BatchReport, Generate, Stop


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
