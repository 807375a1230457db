"""The front door: open a bundle, stream a request, get images."""

import logging
import threading
import weakref
from collections.abc import AsyncIterator, Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from bitdance_edge.runtime.asynchronous import in_threads
from bitdance_edge.runtime.backends.choice import Choice, Wanted, choose_backend
from bitdance_edge.runtime.backends.interface import Backend, StageTime
from bitdance_edge.runtime.bundle.hub import bundle_folder
from bitdance_edge.runtime.bundle.manifest import Bundle
from bitdance_edge.runtime.bundle.size import Size
from bitdance_edge.runtime.bundle.specs import ImageSize
from bitdance_edge.runtime.calling import Callback, PipelineOutput, Subject, called_request, run_call
from bitdance_edge.runtime.errors import BackendError, RequestError
from bitdance_edge.runtime.events import Event, ImageDone
from bitdance_edge.runtime.image import GeneratedImage
from bitdance_edge.runtime.loaded import LoadedBundle
from bitdance_edge.runtime.loop import LoopShape
from bitdance_edge.runtime.memory_plan import MemoryPlan
from bitdance_edge.runtime.planning import images_together, leave_room_for_weights, plan_on
from bitdance_edge.runtime.preview import PreviewCanvas
from bitdance_edge.runtime.prompt import PromptEncoder
from bitdance_edge.runtime.request import MAX_COUNT, MAX_SEED, Request, Settings
from bitdance_edge.runtime.streaming import stream_batches, token_request, with_init
from bitdance_edge.runtime.tokens import checked_tokens
from bitdance_edge.runtime.values import checked_pixels, file_path, items, shown, text, whole
from bitdance_edge.runtime.window_choice import WindowChoice
from bitdance_edge.runtime.window_costs import costs_key

log = logging.getLogger(__name__)
MAX_THREADS = 1024  # of each graph; ONNX Runtime would start any number


class Pipeline:
    """A bundle on one device. Stages are checked and loaded on first use.

    Threads may share it: they take turns, patch by patch. Memory for a request is kept for the next one of the same
    size, so that it starts at once.
    """

    def __init__(
        self, bundle: Bundle, backend: Backend, choice: Choice, max_batch: int, plan: MemoryPlan | None = None
    ) -> None:
        """Run a bundle on an open backend, which the pipeline closes; ``plan`` is that of a GPU's memory."""
        self.bundle, self.backend, self.choice, self.max_batch = bundle, backend, choice, max_batch
        self.loaded = LoadedBundle(bundle, backend, max_batch, plan)
        self._lock = threading.Lock()
        self._closed = False
        # Also where nobody calls close: when the pipeline is forgotten, and when Python ends.
        self._finalize = weakref.finalize(self, backend.close)

    @classmethod
    def open(
        cls,
        bundle: str | Path,
        *,
        device: str = "auto",
        backend: str | None = None,
        threads: int | None = None,
        max_batch: int | None = None,
        trace: str | Path | None = None,
    ) -> "Pipeline":
        """Open a bundle on the best backend present; ``choice`` then says which, and why not the others.

        Args:
            device: "auto", "cpu", "cpu:bf16" (float32 stages multiplied in bfloat16), "cuda" or "cuda:1".
            backend: "tensorrt", "tensorrt_rtx", "onnxruntime-cuda", "onnxruntime-cpu" or "openvino", and no other;
                None: the best one that can run the bundle here; "openvino" is that of "cpu:bf16" alone.
            threads: of each graph on the CPU; None: one a physical core, or 1 for a small model.
            max_batch: images that run together; a larger request runs in parts. None: 16, or as many as fit.
            trace: folder for one operator trace a stage (Chrome's format), complete when the pipeline is closed.

        Raises:
            BundleError: the bundle is missing, altered or of another format.
            BackendError: nothing is installed that can run it, or not on this device.
            RequestError: a value is not allowed, or ``max_batch`` images (or one) do not fit into the GPU's memory.
        """
        threads = None if threads is None else whole("threads", threads, 1, MAX_THREADS)
        max_batch = None if max_batch is None else whole("max_batch", max_batch, 1, MAX_COUNT)
        device, backend = text("device", device), None if backend is None else text("backend", backend)
        wanted = Wanted.parse(device, backend, threads, None if trace is None else file_path("trace", trace))
        opened = Bundle.open(file_path("bundle", bundle))
        chosen, choice = choose_backend(opened, wanted)
        choice = replace(choice, threads=threads)
        for line in choice.lines():
            log.info(line)
        try:
            batch = images_together(opened, chosen, choice, max_batch)
            plan = plan_on(opened, chosen, choice, batch)
            leave_room_for_weights(choice, plan)
            return cls(opened, chosen, choice, batch, plan)
        except BaseException:
            chosen.close()
            raise

    @classmethod
    def from_pretrained(cls, name: str | Path, *, revision: str | None = None, **how: Any) -> "Pipeline":
        """Open a bundle by its folder, or by its name on the Hub as ``OWNER/NAME``, from where it is downloaded once.

        Args:
            revision: branch, tag or commit on the Hub; None: the main branch.
            how: arguments of ``open``.

        Raises:
            HubError: the bundle cannot be downloaded; the message has the command that can.
        """
        revision = None if revision is None else text("revision", revision)
        return cls.open(bundle_folder(file_path("name", name), revision), **how)

    def __call__(
        self,
        prompt: Subject,
        *,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        num_images_per_prompt: int = 1,
        width: int | None = None,
        height: int | None = None,
        seed: int | None = None,
        generator: Any = None,
        callback_on_step_end: Callback | None = None,
        **others: Any,
    ) -> PipelineOutput:
        """Generate with the argument names of diffusers; what is None takes the bundle's default.

        Args:
            prompt: a prompt, or a class by id or name; or several, with ``num_images_per_prompt`` images of each.
            num_inference_steps: sampling steps of each patch (``Request.steps``).
            seed: image i uses seed + i.
            generator: in place of ``seed``: a ``torch.Generator``, of which the seed is taken, or one an image.
            callback_on_step_end: called with the pipeline, the patches done, those in total, and a dict of ``tokens``.
            others: fields of ``Request``, such as ``negative_prompt``, ``sampler``, ``size`` or ``prefix``.

        Raises:
            RequestError: as ``stream``, or an argument is unknown or given twice.
        """
        named = {
            "num_inference_steps": num_inference_steps,
            "guidance_scale": guidance_scale,
            "num_images_per_prompt": num_images_per_prompt,
            "width": width,
            "height": height,
            "seed": seed,
            "generator": generator,
            "callback_on_step_end": callback_on_step_end,
        }
        return run_call(self, called_request(self, prompt, named, others), callback_on_step_end)

    def __repr__(self) -> str:
        return f"Pipeline({self.bundle.name}, {self.bundle.model.kind}, {self.choice.backend})"

    def close(self) -> None:
        """Give back all memory, sessions and engines. Closing twice is closing once.

        Raises:
            StorageError: an operator trace could not be written to its end.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
            try:
                with self.backend.current():
                    self.loaded.close()
            finally:
                self._finalize()

    def times(self) -> dict[str, StageTime]:
        """Launches and seconds of every stage that has run by itself since the pipeline was opened."""
        return self.loaded.times()

    def __enter__(self) -> "Pipeline":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def generate(self, request: Request, cancel: threading.Event | None = None) -> list[GeneratedImage]:
        """Generate all images of a request, in order; raises what ``stream`` raises."""
        return [event.image for event in self.stream(request, cancel) if isinstance(event, ImageDone)]

    def stream(self, request: Request, cancel: threading.Event | None = None) -> Generator[Event, None, None]:
        """Generate, one event at a time; the request is checked before the iterator is returned.

        Setting ``cancel`` from any thread ends it before the next patch, as does closing the iterator. On a GPU the
        next patch runs while an event is looked at, and previews and images come when they are decoded, which may be
        some patches later.

        Raises:
            RequestError: the request asks for what this bundle, or the memory there is, cannot give, or a value is not
                allowed.
            Cancelled: ``cancel`` was set.
            BackendError: the pipeline was closed.
        """
        if not isinstance(request, Request):
            raise RequestError(f"the request is {shown(request)}; give a Request, such as Request(classes=[3])")
        if cancel is not None and not callable(getattr(cancel, "is_set", None)):
            raise RequestError(f"cancel is {shown(cancel)}; give a threading.Event")
        settings = request.resolve(self.bundle, self._encoder)
        return self._taking_turns(self._stream(settings, cancel or threading.Event()))

    def astream(self, request: Request, cancel: threading.Event | None = None) -> AsyncIterator[Event]:
        """``stream`` for asyncio: the loop stays free while patches are made; leaving it ends the work.

        The request is checked before the iterator is returned; raises what ``stream`` raises.
        """
        return in_threads(self.stream(request, cancel))

    def tokenize(self, pixels: Any) -> np.ndarray:
        """Encode images to tokens int8 ``[B, h*w, C]`` in generation order.

        Args:
            pixels: uint8 ``[B, H, W, 3]`` of one of the bundle's sizes, or of one image ``[H, W, 3]``; Pillow's RGB
                images too. ``load_pixels`` reads a file in this form.

        Raises:
            RequestError: they are of another type, shape or size.
        """
        pixels = checked_pixels(pixels)
        size = self.bundle.model.size(Size.of(pixels))
        if not len(pixels):
            return np.zeros((0, size.tokens, self.bundle.model.bits), np.int8)
        with self._turn():
            tokens = self.loaded.encode(pixels, size).wait()
        return tokens.reshape(len(pixels), size.tokens, -1).astype(np.int8)

    def decode(self, tokens: Any, seeds: Any = None, size: Size | str | None = None) -> np.ndarray:
        """Decode tokens in generation order to images uint8 ``[B, H, W, 3]``.

        Args:
            tokens: ``[B, h*w, C]`` of -1 and +1, 0 for tokens that are not drawn; or of one image ``[h*w, C]``.
            seeds: one an image; they matter only for decoders that draw their texture from noise (0 where not given).
            size: of the images in pixels; None: the bundle's default.

        Raises:
            RequestError: the tokens are of another shape or have other values, or the seeds are of another number.
        """
        wanted = self.bundle.model.size(size)
        tokens = self._tokens(tokens, wanted, wanted.tokens)
        if not len(tokens):
            return np.zeros((0, wanted.height, wanted.width, 3), np.uint8)
        with self._turn():
            return self.loaded.decode(tokens, _seeds(seeds, len(tokens)), wanted).wait()

    def preview(self, tokens: Any, seeds: Any = None, size: Size | str | None = None) -> np.ndarray:
        """Decode the first tokens ``[B, K, C]`` of images to what can be seen of them, uint8 ``[B, H, W, 3]``.

        The missing tokens are zero for the decoder, and what is not drawn yet is gray. ``seeds``, ``size`` and errors
        as for ``decode``.
        """
        wanted = self.bundle.model.size(size)
        tokens = self._tokens(tokens, wanted, 0)
        if not len(tokens):
            return np.zeros((0, wanted.height, wanted.width, 3), np.uint8)
        with self._turn():
            return self.loaded.preview(tokens, _seeds(seeds, len(tokens)), wanted).wait()

    def preview_canvas(self, images: int, size: Size | str | None = None) -> PreviewCanvas:
        """Make a canvas for fast previews of ``images`` of one size, to be drawn patch by patch.

        Raises:
            RequestError: the bundle has no map for them, or a value is not allowed.
        """
        images = whole("images", images, 1, MAX_COUNT)
        return self.loaded.preview_canvas(images, self.bundle.model.size(size))

    def reconstruct(self, pixels: Any) -> np.ndarray:
        """Encode and decode images, given as for ``tokenize``, to uint8 ``[B, H, W, 3]``."""
        pixels = checked_pixels(pixels)
        return self.decode(self.tokenize(pixels), size=Size.of(pixels))

    def _tokens(self, values: Any, size: ImageSize, least: int) -> np.ndarray:
        """Tokens from outside as int8 ``[B, K, C]``, K from ``least`` to what an image of this size has."""
        tokens, bits = checked_tokens("tokens", values, undrawn=True), self.bundle.model.bits
        tokens = tokens[None] if tokens.ndim == 2 else tokens
        if tokens.shape[2] != bits or not least <= tokens.shape[1] <= size.tokens:
            raise RequestError(
                f"tokens are {list(tokens.shape)}; for {size} pixels they must be [B, {size.tokens}, {bits}]"
            )
        return tokens

    @cached_property
    def _encoder(self) -> PromptEncoder | None:
        return None if self.bundle.text is None else PromptEncoder.open(self.bundle)

    def _stream(self, settings: Settings, cancel: threading.Event) -> Iterator[Event]:
        encodes = self.loaded.encodes or (settings.edit is not None and settings.edit.encode)
        first = settings.batches(self.max_batch)[0].rounds(self.max_batch)[0]
        together = len(first.images)
        if settings.window is None:
            settings = replace(settings, window=self._faster_window(first, together, encodes))
        plan_on(self.bundle, self.backend, self.choice, together, settings, encodes)
        settings = with_init(self.loaded, settings)
        yield from stream_batches(self.loaded, settings.batches(self.max_batch), cancel)

    def _faster_window(self, settings: Settings, together: int, encodes: bool) -> int:
        if settings.batch_invariant:
            return 1

        def fits(window: int) -> bool:
            try:
                plan_on(self.bundle, self.backend, self.choice, together, replace(settings, window=window), encodes)
            except RequestError:
                return False
            return True

        def key(shape: LoopShape) -> str:
            choice = self.choice
            device = (choice.backend, choice.device, choice.target, choice.built, choice.threads)
            return costs_key(self.bundle.digest, *device, shape.images, shape.guided, shape.steps)

        return WindowChoice(self.loaded, key).faster(token_request(settings).shape, fits)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Take the device for this thread alone; others wait until it is given up."""
        with self._lock:
            if self._closed:
                raise BackendError("the pipeline is closed; open the bundle again with Pipeline.open")
            with self.backend.current():
                yield

    def _taking_turns(self, events: Iterator[Event]) -> Generator[Event, None, None]:
        """Pass events on, with the device held only while the next one is made."""
        try:
            while True:
                with self._turn():
                    event = next(events, None)
                if event is None:
                    return
                yield event
        finally:
            if not self._closed:
                with self._turn():
                    events.close()  # type: ignore[attr-defined]  a generator


def _seeds(seeds: Any, images: int) -> list[int]:
    """The seeds of images that are decoded: as given, 0 where none are."""
    if seeds is None:
        return [0] * images
    found = [whole("seed", seed, 0, MAX_SEED) for seed in items("seeds", seeds)]
    if len(found) != images:
        raise RequestError(f"{len(found)} seeds for {images} images; give one an image")
    return found
