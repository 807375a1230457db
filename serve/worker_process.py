"""The process that owns the pipelines of one device: it takes orders, sends reports, and ends with its server.

It knows nothing of HTTP. A second thread listens for cancellations while the first runs a batch.
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

from bitdance_edge.errors import plain
from bitdance_edge.runtime import BitDanceError, Cancelled, ImageDone, PatchDone, Pipeline, Request, RequestError, Size
from bitdance_edge.runtime.backends.interface import StageTime
from bitdance_edge.runtime.bundle.stage_names import StageName
from bitdance_edge.runtime.errors import OutOfMemoryError
from bitdance_edge.runtime.preview import PreviewCanvas
from bitdance_edge.runtime.values import items
from bitdance_edge.serve.work import (
    BatchReport,
    Cancel,
    Generate,
    ImageReport,
    NotReady,
    Order,
    PatchReport,
    Ready,
    Report,
    Stop,
    Tokenize,
    TokensReport,
)


class ServerGone(Exception):
    """The server at the other end of the connection has ended."""


def run_worker(
    connection: Connection, bundles: Mapping[str, tuple[Path, int]], device: str, threads: int | None
) -> None:
    """Open each bundle (folder, images at once), make a warm-up image, then take orders until told to stop."""
    for name in ("SIGINT", "SIGHUP"):  # they reach the whole group; the server says when to stop
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with ExitStack() as opened, suppress(ServerGone):
        try:
            pipelines = {
                name: opened.enter_context(Pipeline.open(folder, device=device, threads=threads, max_batch=at_once))
                for name, (folder, at_once) in bundles.items()
            }
            for pipeline in pipelines.values():
                warm_up(pipeline)
        except BitDanceError as error:
            _send(connection, NotReady(str(error)))
            return
        backends = {pipeline.backend.name for pipeline in pipelines.values()}
        _send(connection, Ready(", ".join(sorted(backends))))
        _OrderLoop(connection, pipelines).run()


def _send(connection: Connection, report: Report) -> None:
    try:
        connection.send(report)
    except OSError as error:
        raise ServerGone from error


def warm_up(pipeline: Pipeline) -> None:
    """Make one image of one step and, where there is an encoder, tokenise it, so that every stage is loaded."""
    size = min(pipeline.bundle.model.sizes, key=lambda size: size.area)
    if not pipeline.bundle.model.generates:
        pipeline.reconstruct(np.zeros((1, size.height, size.width, 3), np.uint8))
        return
    (image,) = pipeline.generate(replace(Request.example(pipeline.bundle), seed=0, steps=1, size=size))
    if StageName.ENCODER in pipeline.bundle.stages and image.pixels is not None:
        pipeline.tokenize(image.pixels[None])


class _OrderLoop:
    """Runs orders one after the other, and reports on them."""

    def __init__(self, connection: Connection, pipelines: Mapping[str, Pipeline]) -> None:
        self.connection, self.pipelines = connection, pipelines
        self.orders: queue.Queue[Generate | Tokenize | None] = queue.Queue()
        self.cancels: dict[int, threading.Event] = {}

    def run(self) -> None:
        """Run orders until the server says stop or is gone. Raises: ServerGone."""
        threading.Thread(target=self._listen, daemon=True).start()
        while (order := self.orders.get()) is not None:
            _send(self.connection, self._run_batch(order))
            del self.cancels[order.batch]

    def _listen(self) -> None:
        """Queue batches and pass on cancellations; at the end cancel the batch that runs."""
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
        try:
            return self.connection.recv()
        except (EOFError, OSError):  # the server is gone
            return Stop()

    def _run_batch(self, order: Generate | Tokenize) -> BatchReport:
        pipeline = self.pipelines[order.model]
        before, started = _stage_times(pipeline), time.perf_counter()
        failure = None
        try:
            reports = self._generated(pipeline, order) if isinstance(order, Generate) else _tokenized(pipeline, order)
            for report in reports:
                _send(self.connection, report)
        except ServerGone:
            raise
        except Cancelled as error:
            failure = ("cancelled", plain(error))
        except RequestError as error:
            failure = ("invalid_request", plain(error))
        except (OutOfMemoryError, MemoryError) as error:
            failure = ("insufficient_memory", plain(error))
        except Exception as error:  # whatever a backend raises fails this batch only
            failure = ("generation_failed", plain(error))
        return BatchReport(
            batch=order.batch,
            seconds=time.perf_counter() - started,
            stages=_spent(before, _stage_times(pipeline)),
            failure=failure,
        )

    def _generated(self, pipeline: Pipeline, order: Generate) -> Iterator[Report]:
        previewer: _Previewer | None = None
        for event in pipeline.stream(order.request, self.cancels[order.batch]):
            if isinstance(event, PatchDone):
                if previewer is None or event.patch == 1:
                    previewer = _Previewer(pipeline, order, event.first_image, len(event.tokens))
                yield PatchReport(
                    batch=order.batch,
                    first=event.first_image,
                    count=len(event.tokens),
                    patch=event.patch,
                    patches=event.patches,
                    previews=previewer.add(event),
                )
            elif isinstance(event, ImageDone):
                yield ImageReport(batch=order.batch, index=event.image.index, image=event.image)


class _Previewer:
    """Makes the previews that an order asks for, of ``count`` images from image ``first`` of its batch."""

    def __init__(self, pipeline: Pipeline, order: Generate, first: int, count: int) -> None:
        self.pipeline, self.order, self.first = pipeline, order, first
        self.images = range(first, first + count)
        self.patches = pipeline.bundle.model.size(order.request.size).patches
        self.tokens: list[np.ndarray] = []  # int8 [B, P, C], one a patch
        self.canvas: PreviewCanvas | None = None
        if any(order.fast[i] and order.previews[i] for i in self.images):
            self.canvas = pipeline.preview_canvas(count, order.request.size)

    def add(self, done: PatchDone) -> dict[int, np.ndarray]:
        """Take in a patch and return the previews due after it, uint8 ``[H, W, 3]``, by image of the batch.

        Of several candidates for an image, the first is shown.
        """
        if done.patch > self.patches:
            return {}
        self.tokens.append(done.tokens)
        due = [i for i in self.images if done.patch in self.order.previews[i]]
        previews: dict[int, np.ndarray] = {}
        if self.canvas is not None:
            self.canvas.add(done.tokens)
            previews = {i: self.canvas.pixels[i - self.first].copy() for i in due if self.order.fast[i]}
        if full := [i for i in due if not self.order.fast[i]]:
            tokens = np.concatenate(self.tokens, axis=1)[[i - self.first for i in full]]
            seeds = items("seeds", self.order.request.seeds)
            pixels = self.pipeline.preview(tokens, [seeds[i] for i in full], self.order.request.size)
            previews |= zip(full, pixels, strict=True)
        return previews


def _tokenized(pipeline: Pipeline, order: Tokenize) -> Iterator[Report]:
    tokens = pipeline.tokenize(order.pixels[None])
    pixels = pipeline.decode(tokens, size=Size.of(order.pixels))
    yield TokensReport(batch=order.batch, tokens=tokens[0], pixels=pixels[0])


def _stage_times(pipeline: Pipeline) -> dict[str, StageTime]:
    """A copy of the pipeline's times, which go on counting."""
    return {name: replace(time) for name, time in pipeline.times().items()}


def _spent(before: Mapping[str, StageTime], after: Mapping[str, StageTime]) -> dict[str, StageTime]:
    """The launches and seconds of each stage that ran between two readings."""
    none = StageTime()
    return {
        name: StageTime(launches=now.launches - then.launches, seconds=now.seconds - then.seconds)
        for name, now in after.items()
        if now.launches > (then := before.get(name, none)).launches
    }
