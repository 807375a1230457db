"""The process that owns the pipelines of one device: takes orders, answers with what it made, and ends with its server.

Nothing of HTTP is known here. A second thread listens for cancellations while the first runs a batch.
"""

import queue
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from bitdance_edge.runtime import BitDanceError, Cancelled, Pipeline, Request, RequestError, Size
from bitdance_edge.runtime import ImageDone as RuntimeImage
from bitdance_edge.runtime import PatchDone as RuntimePatch
from bitdance_edge.runtime.preview import PreviewCanvas
from bitdance_edge.serve.work import (
    BatchDone,
    Cancel,
    Generate,
    ImageDone,
    NotReady,
    Order,
    PatchDone,
    Ready,
    Report,
    StageReport,
    Stop,
    Tokenize,
    Tokens,
)


def work(connection: Connection, bundles: Mapping[str, tuple[Path, int]], device: str, threads: int | None) -> None:
    """Entry point of the process: open each bundle (folder, images at once), warm up, then serve until the end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the server says when to stop
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with ExitStack() as opened:
        try:
            pipelines = {
                name: opened.enter_context(Pipeline.open(folder, device=device, threads=threads, max_batch=at_once))
                for name, (folder, at_once) in bundles.items()
            }
            for pipeline in pipelines.values():
                _warm_up(pipeline)
        except BitDanceError as error:
            connection.send(NotReady(str(error)))
            return
        backends = {pipeline.backend.name for pipeline in pipelines.values()}
        connection.send(Ready(", ".join(sorted(backends))))
        with suppress(BrokenPipeError, EOFError):  # the server is gone
            _Desk(connection, pipelines).serve()


def _warm_up(pipeline: Pipeline) -> None:
    """One image in as few steps as there are, and one through the encoder: every stage is loaded then."""
    subject = Request.example(pipeline.bundle)
    (image,) = pipeline.generate(
        replace(subject, seed=0, steps=1, size=min(pipeline.bundle.model.sizes, key=lambda size: size.area))
    )
    if "encoder" in pipeline.bundle.stages and image.pixels is not None:
        pipeline.tokenize(image.pixels[None])


class _Desk:
    """Orders in, reports out."""

    def __init__(self, connection: Connection, pipelines: Mapping[str, Pipeline]) -> None:
        self.connection, self.pipelines = connection, pipelines
        self.orders: queue.Queue[Generate | Tokenize | None] = queue.Queue()
        self.cancels: dict[int, threading.Event] = {}

    def serve(self) -> None:
        threading.Thread(target=self._listen, daemon=True).start()
        while (order := self.orders.get()) is not None:
            self.connection.send(self._carried_out(order))
            del self.cancels[order.batch]

    def _listen(self) -> None:
        """Sort what arrives; when the server says so or is gone, end what runs."""
        with suppress(EOFError, OSError):
            while not isinstance(order := self._next_order(), Stop):
                if isinstance(order, Cancel):
                    if event := self.cancels.get(order.batch):
                        event.set()
                else:
                    self.cancels[order.batch] = threading.Event()
                    self.orders.put(order)
        for event in list(self.cancels.values()):
            event.set()
        self.orders.put(None)

    def _next_order(self) -> Order:
        return self.connection.recv()

    def _carried_out(self, order: Generate | Tokenize) -> BatchDone:
        pipeline = self.pipelines[order.model]
        before, started = _stage_reports(pipeline), time.perf_counter()
        failure = None
        try:
            reports = self._generated(pipeline, order) if isinstance(order, Generate) else _tokenized(pipeline, order)
            for report in reports:
                self.connection.send(report)
        except Cancelled as error:
            failure = ("cancelled", str(error))
        except RequestError as error:
            failure = ("invalid_request", str(error))
        except BrokenPipeError:
            raise
        except Exception as error:  # a backend's own errors share no base class; the server goes on
            failure = ("insufficient_memory" if _is_memory(error) else "generation_failed", str(error))
        return BatchDone(
            batch=order.batch,
            seconds=time.perf_counter() - started,
            stages=_spent(before, _stage_reports(pipeline)),
            failure=failure,
        )

    def _generated(self, pipeline: Pipeline, order: Generate) -> Iterator[Report]:
        seeds = order.request.seeds or []
        done: list[np.ndarray] = []
        canvas: PreviewCanvas | None = None
        for event in pipeline.stream(order.request, self.cancels[order.batch]):
            if isinstance(event, RuntimePatch):
                done = [event.tokens] if event.patch == 1 else [*done, event.tokens]
                first, count = event.first_image, len(event.tokens)
                images = range(first, first + count)
                if event.patch == 1:
                    fast = any(order.fast[i] and order.previews[i] for i in images)
                    canvas = pipeline.preview_canvas(count, order.request.size) if fast else None
                previews: dict[int, np.ndarray] = {}
                if canvas is not None:
                    canvas.add(event.tokens)
                    due = [i for i in images if order.fast[i] and event.patch in order.previews[i]]
                    previews = {i: canvas.pixels[i - first].copy() for i in due}
                if shown := [i for i in images if not order.fast[i] and event.patch in order.previews[i]]:
                    tokens = np.concatenate(done, axis=1)[[i - first for i in shown]]
                    pixels = pipeline.preview(tokens, [seeds[i] for i in shown], order.request.size)
                    previews |= zip(shown, pixels, strict=True)
                yield PatchDone(
                    batch=order.batch,
                    first=first,
                    count=count,
                    patch=event.patch,
                    patches=event.patches,
                    previews=previews,
                )
            elif isinstance(event, RuntimeImage):
                yield ImageDone(batch=order.batch, index=event.image.index, image=event.image)


def _tokenized(pipeline: Pipeline, order: Tokenize) -> Iterator[Report]:
    tokens = pipeline.tokenize(order.pixels[None])
    yield Tokens(batch=order.batch, tokens=tokens[0], pixels=pipeline.decode(tokens, size=Size.of(order.pixels))[0])


def _stage_reports(pipeline: Pipeline) -> dict[str, StageReport]:
    return {name: StageReport(spent.launches, spent.seconds) for name, spent in pipeline.times().items()}


def _spent(before: Mapping[str, StageReport], after: Mapping[str, StageReport]) -> dict[str, StageReport]:
    none = StageReport(0, 0.0)
    return {
        name: StageReport(now.launches - then.launches, now.seconds - then.seconds)
        for name, now in after.items()
        if now.launches > (then := before.get(name, none)).launches
    }


def _is_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or "allocate" in str(error).lower() or "out of memory" in str(error).lower()
