"""The front door: open a bundle, stream a request, get images."""

import logging
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from bitdance_edge.runtime.backends.choice import Choice, Wanted, choose_backend
from bitdance_edge.runtime.backends.interface import Arrived, Backend, Pending, Stage, StageTime
from bitdance_edge.runtime.bundle.manifest import Bundle
from bitdance_edge.runtime.bundle.size import Size
from bitdance_edge.runtime.bundle.specs import ImageSize
from bitdance_edge.runtime.bundle.stage_names import LOOP_STAGES
from bitdance_edge.runtime.errors import BackendError, Cancelled, RequestError
from bitdance_edge.runtime.image import GeneratedImage, image_settings
from bitdance_edge.runtime.image_stage import ImageStage
from bitdance_edge.runtime.loop import BoundLoop, LoopShape, TokenRequest, generate_tokens
from bitdance_edge.runtime.memory_plan import MemoryPlan, decoded_at_once, most_images, require_memory
from bitdance_edge.runtime.noise import ImageNoise, Stream, normals
from bitdance_edge.runtime.preview import UNSEEN, PreviewBudget, PreviewCanvas, PreviewMap, undrawn
from bitdance_edge.runtime.prompt import PromptEncoder
from bitdance_edge.runtime.request import Request, Settings

log = logging.getLogger(__name__)

DEFAULT_BATCH = 16  # images that run together where nobody says otherwise


@dataclass(frozen=True, kw_only=True)
class PatchDone:
    """A patch of every image of the batch is there: ``patch`` counts from 1; ``tokens`` int8 ``[B, P, C]``."""

    first_image: int
    patch: int
    patches: int
    tokens: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Preview:
    """What is decoded so far: ``pixels`` uint8 ``[B, H, W, 3]``, gray where nothing is drawn yet."""

    first_image: int
    patch: int
    patches: int
    pixels: np.ndarray


@dataclass(frozen=True, kw_only=True)
class ImageDone:
    image: GeneratedImage


Event = PatchDone | Preview | ImageDone


@dataclass(frozen=True)
class Coming:
    """Pixels that are being decoded, and the events they will make."""

    pixels: Pending
    events: Callable[[np.ndarray], Iterator[Event]]


class Pipeline:
    """A bundle on one device. Stages are checked and loaded on first use.

    Threads may share it: they take turns, patch by patch. Memory for a request is kept for the next one of the same
    size, so that it starts at once.
    """

    def __init__(self, bundle: Bundle, backend: Backend, choice: Choice, max_batch: int) -> None:
        self.bundle, self.backend, self.choice, self.max_batch = bundle, backend, choice, max_batch
        self._stages: dict[str, Stage] = {}
        self._image_stages: dict[str, ImageStage] = {}
        self._beside: Backend | None = None
        self._idle: BoundLoop | None = None
        self._lock = threading.Lock()
        self._closed = False
        # Also where nobody calls close: when the pipeline is forgotten, and when Python ends.
        self._finalize = weakref.finalize(self, backend.close)

    @cached_property
    def _encoder(self) -> PromptEncoder | None:
        return None if self.bundle.text is None else PromptEncoder.open(self.bundle)

    @cached_property
    def _preview_map(self) -> PreviewMap:
        bundle = self.bundle
        path = bundle.verified_file(bundle.require_fast_previews())
        return PreviewMap.load(path, bundle.model.bits, bundle.model.pixels_per_token)

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
            device: "auto", "cpu", "cuda" or "cuda:1".
            backend: "tensorrt", "tensorrt_rtx", "onnxruntime-cuda" or "onnxruntime-cpu", and no other; None for the
                best that is here.
            threads: of each graph on the CPU; None is one a physical core.
            max_batch: images that run together; a larger request runs in parts. None is 16, or what fits.
            trace: folder for one operator trace a stage (Chrome's format), complete when the pipeline is closed.

        Raises:
            BundleError: the bundle is missing, altered or of another format.
            BackendError: nothing is installed that can run it, or not on this device.
            RequestError: a value is not allowed, or ``max_batch`` images (or one) do not fit into the GPU's memory.
        """
        if (max_batch is not None and max_batch < 1) or (threads is not None and threads < 1):
            raise RequestError(f"threads is {threads} and max_batch {max_batch}; both must be at least 1")
        wanted = Wanted.parse(device, backend, threads, None if trace is None else Path(trace))
        opened = Bundle.open(bundle)
        chosen, choice = choose_backend(opened, wanted)
        for line in choice.lines():
            log.info(line)
        try:
            return cls(opened, chosen, choice, _batch(opened, choice, max_batch))
        except BaseException:
            chosen.close()
            raise

    def close(self) -> None:
        """Give back all memory, sessions and engines. Closing twice is closing once."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            with self.backend.current():
                if self._idle is not None:
                    self._idle.free()
                for image_stage in self._image_stages.values():
                    image_stage.close()
                for stage in self._stages.values():
                    stage.close()
            self._idle = None
            self._image_stages.clear()
            self._stages.clear()
            self._finalize()

    def times(self) -> dict[str, StageTime]:
        """Launches and seconds of every stage that has run by itself since the pipeline was opened."""
        return {name: stage.time for name, stage in self._stages.items()}

    def __enter__(self) -> "Pipeline":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def generate(self, request: Request, cancel: threading.Event | None = None) -> list[GeneratedImage]:
        """All images of a request, in order."""
        return [event.image for event in self.stream(request, cancel) if isinstance(event, ImageDone)]

    def stream(self, request: Request, cancel: threading.Event | None = None) -> Iterator[Event]:
        """Generate, one event at a time; the request is checked before the iterator is returned.

        Setting ``cancel`` from any thread ends it before the next patch, as does closing the iterator. On a GPU the
        next patch runs while an event is looked at, and previews and images come when they are decoded, which may be
        some patches later.

        Raises:
            RequestError: the request asks for what this bundle, or the memory there is, cannot give.
            Cancelled: ``cancel`` was set.
            BackendError: the pipeline was closed.
        """
        settings = request.resolve(self.bundle, self._encoder)
        return self._taking_turns(self._stream(settings, cancel or threading.Event()))

    def tokenize(self, pixels: np.ndarray) -> np.ndarray:
        """Images uint8 ``[B, H, W, 3]`` of one of the bundle's sizes to tokens int8 ``[B, h*w, C]``.

        The tokens are in generation order.
        """
        pixels = np.asarray(pixels)
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] != 3:
            raise RequestError(f"pixels are {pixels.dtype} {list(pixels.shape)}; they must be uint8 [B, H, W, 3]")
        size = self.bundle.model.size(Size.of(pixels))
        with self._turn():
            tokens = self._image_stage("encoder")({"pixels": pixels}, size).wait()
        return tokens.reshape(len(pixels), size.tokens, -1).astype(np.int8)

    def decode(self, tokens: np.ndarray, seeds: list[int] | None = None, size: Size | str | None = None) -> np.ndarray:
        """Tokens ``[B, h*w, C]`` in generation order to images uint8 ``[B, H, W, 3]``.

        Args:
            seeds: one an image; they matter only for decoders that draw their texture from noise (0 where not given).
            size: of the images in pixels; None: the bundle's default.
        """
        model = self.bundle.model
        wanted = model.size(size)
        tokens = np.asarray(tokens)
        if tokens.ndim != 3 or tokens.shape[1:] != (wanted.tokens, model.bits):
            raise RequestError(
                f"tokens are {list(tokens.shape)}; for {wanted} pixels they must be [B, {wanted.tokens}, {model.bits}]"
            )
        with self._turn():
            return self._decode(tokens, seeds or [0] * len(tokens), wanted).wait()

    def preview(self, tokens: np.ndarray, seeds: list[int] | None = None, size: Size | str | None = None) -> np.ndarray:
        """The first tokens ``[B, K, C]`` of images to what can be seen of them, uint8 ``[B, H, W, 3]``.

        Decodes with the missing tokens at zero, and grays out what is not drawn yet. ``seeds`` and ``size`` as for
        ``decode``.
        """
        model = self.bundle.model
        whole, known = model.size(size), tokens.shape[1]
        padded = np.zeros((len(tokens), whole.tokens, model.bits), np.float32)
        padded[:, :known] = tokens
        pixels = self.decode(padded, seeds, size)
        pixels[:, undrawn(whole, known, model.patch_side)] = UNSEEN
        return pixels

    def preview_canvas(self, images: int, size: Size | str | None = None) -> PreviewCanvas:
        """Fast previews of ``images`` of one size, to be drawn patch by patch.

        Raises:
            RequestError: the bundle has no map for them.
        """
        model = self.bundle.model
        return PreviewCanvas(self._preview_map, images, model.bits, model.size(size), model.patch_side)

    def reconstruct(self, pixels: np.ndarray) -> np.ndarray:
        """Images through the tokenizer and back, uint8 ``[B, H, W, 3]``."""
        return self.decode(self.tokenize(pixels), size=Size.of(pixels))

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """The device for this thread alone; others wait until it is given up."""
        with self._lock:
            if self._closed:
                raise BackendError("the pipeline is closed; open the bundle again with Pipeline.open")
            with self.backend.current():
                yield

    def _taking_turns(self, events: Iterator[Event]) -> Iterator[Event]:
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

    def _stage(self, name: str) -> Stage:
        if name not in self._stages:
            self._stages[name] = self.backend.load(name)
        return self._stages[name]

    def _image_stage(self, name: str) -> ImageStage:
        if name not in self._image_stages:
            plan = self._plan(self.max_batch)
            backend = self.backend
            if plan is None or plan.beside:
                backend = self._beside = self._beside or self.backend.beside()
            stage = self._stages[name] = backend.load(name)
            alone = decoded_at_once(self.bundle.stage(name), self.max_batch)
            at_once = alone if plan is None else plan.decoder_images
            output = "pixels" if name == "decoder" else "tokens"
            self._image_stages[name] = ImageStage(backend, self.bundle, stage, name, output, at_once)
        return self._image_stages[name]

    def _plan(self, images: int, settings: Settings | None = None) -> MemoryPlan | None:
        """The memory that ``images`` at once take, by default sampled as the bundle says; None where no GPU limits it.

        Raises:
            RequestError: they do not fit.
        """
        choice, bundle = self.choice, self.bundle
        if choice.free_bytes is None:
            return None
        if settings is not None:
            asked = {"steps": settings.steps, "guidance_schedule": settings.guidance_schedule}
            bundle = replace(bundle, sampling=replace(bundle.sampling, **asked))
        return require_memory(bundle, images, choice.free_bytes, files=choice.files)

    def _decode(self, tokens: np.ndarray, seeds: Sequence[int], size: ImageSize) -> Pending:
        model, inputs = self.bundle.model, {"tokens": tokens}
        if model.decoder_noise:
            shape = (size.tokens, model.bits)
            inputs["noise"] = np.stack([normals(seed, Stream.DECODER, 0, 1, shape)[0] for seed in seeds])
        return self._image_stage("decoder")(inputs, size)

    @contextmanager
    def _loop(self, shape: LoopShape) -> Iterator[BoundLoop]:
        """A loop of this shape, the one that lies idle if it fits; afterwards it lies idle again."""
        loop, self._idle = self._idle, None
        if loop is not None and loop.shape != shape:
            loop.free()
            loop = None
        if loop is None:
            stages = {name: self._stage(name) for name in LOOP_STAGES}
            loop = BoundLoop(self.backend, self.bundle, stages, shape)
        try:
            yield loop
        finally:
            if self._idle is not None:  # of a request that ran at the same time
                self._idle.free()
            self._idle = loop

    def _stream(self, settings: Settings, cancel: threading.Event) -> Iterator[Event]:
        batches = settings.batches(self.max_batch)
        self._plan(len(batches[0].images), settings)
        coming: deque[Coming] = deque()
        for batch in batches:
            yield from self._stream_batch(batch, cancel, coming)
        while coming:
            yield from _arrive(coming.popleft())

    def _stream_batch(self, settings: Settings, cancel: threading.Event, coming: deque[Coming]) -> Iterator[Event]:
        """The patches of a batch; what is decoded goes into ``coming``, and from there on as it arrives."""
        model, first, done = self.bundle.model, settings.images[0].index, []
        patches = settings.size.patches
        seeds = [image.seed for image in settings.images]
        patch_shape = (model.tokens_per_step, model.bits)
        start_only = settings.sampler == "ode"
        noise = ImageNoise(seeds, settings.steps, patch_shape, start_only=start_only, ahead=patches)
        request = token_request(settings)
        shown = self._previews(settings)
        with self._loop(request.shape) as loop, closing(generate_tokens(loop, request, noise)) as generated:
            while len(done) < patches:
                if cancel.is_set():
                    raise Cancelled(f"cancelled after {len(done)} of {patches} patches")
                done.append(next(generated).astype(np.int8))
                at = {"first_image": first, "patch": len(done), "patches": patches}
                yield PatchDone(tokens=done[-1], **at)
                if (preview := shown(done, at)) is not None:
                    coming.append(preview)
                yield from _arrived(coming)
        tokens = np.concatenate(done, axis=1)
        if settings.decode:
            pixels = self._decode(tokens, seeds, settings.size)
            coming.append(Coming(pixels, partial(self._finish, settings, tokens)))
            yield from _arrived(coming)
        else:
            yield from self._finish(settings, tokens, [None] * len(tokens))

    def _finish(self, settings: Settings, tokens: np.ndarray, pixels: np.ndarray | Sequence[None]) -> Iterator[Event]:
        for i, image in enumerate(settings.images):
            described: dict[str, Any] = image_settings(
                bundle=self.bundle.name,
                digest=self.bundle.digest,
                image=image,
                size=settings.size.pixels,
                steps=settings.steps,
                guidance=settings.guidance,
                guidance_schedule=settings.guidance_schedule,
                sampler=settings.sampler,
                prefix=settings.prefix[i],
            )
            yield ImageDone(
                image=GeneratedImage(
                    index=image.index,
                    class_id=image.class_id,
                    prompt=image.prompt,
                    seed=image.seed,
                    tokens=tokens[i],
                    pixels=pixels[i],
                    settings=described,
                )
            )

    def _previews(self, settings: Settings) -> Callable[[Sequence[np.ndarray], Mapping[str, int]], Coming | None]:
        """Of the patches so far, and where they are in the image, the preview that is due, or None."""
        fast = settings.preview_every and settings.preview_kind == "fast"
        canvas = self.preview_canvas(len(settings.images), settings.size.pixels) if fast else None
        budget = None if settings.preview_share is None else self._preview_budget(settings.preview_share)

        def due(done: Sequence[np.ndarray], at: Mapping[str, int]) -> Coming | None:
            if canvas is not None:
                canvas.add(done[-1])
            every, now = settings.preview_every, at["patch"]
            if not every or now % every or now == at["patches"] or (budget is not None and not budget.allows()):
                return None
            if canvas is not None:
                return Coming(Arrived(canvas.pixels.copy()), lambda pixels: iter([Preview(pixels=pixels, **at)]))
            with nullcontext() if budget is None else budget.paying():
                return self._full_preview(settings, np.concatenate(done, axis=1), at)

        return due

    def _preview_budget(self, share: float) -> PreviewBudget:
        """Of one batch; the first preview is expected to take what the pipeline's decodings took."""
        time = self._image_stage("decoder").stage.time
        return PreviewBudget(share, time.seconds / max(1, time.launches))

    def _full_preview(self, settings: Settings, tokens: np.ndarray, at: Mapping[str, int]) -> Coming:
        """Decode with the missing tokens at zero, and gray out what is not drawn yet."""
        size, known = settings.size, tokens.shape[1]
        padded = np.zeros((len(tokens), size.tokens, self.bundle.model.bits), np.float32)
        padded[:, :known] = tokens
        unseen = undrawn(size, known, self.bundle.model.patch_side)

        def grayed(pixels: np.ndarray) -> Iterator[Event]:
            pixels[:, unseen] = UNSEEN
            yield Preview(pixels=pixels, **at)

        return Coming(self._decode(padded, [image.seed for image in settings.images], size), grayed)


def _arrive(coming: Coming) -> Iterator[Event]:
    return coming.events(coming.pixels.wait())


def _arrived(coming: deque[Coming]) -> Iterator[Event]:
    """The events of what has been decoded meanwhile, in order."""
    while coming and coming[0].pixels.done():
        yield from _arrive(coming.popleft())


def _batch(bundle: Bundle, choice: Choice, max_batch: int | None) -> int:
    """Images that run together: as asked for, or as many as engines and memory allow.

    Raises:
        RequestError: so many, or even one, do not fit.
    """
    limit = choice.max_images or DEFAULT_BATCH
    if max_batch is not None and choice.max_images is not None and max_batch > choice.max_images:
        raise RequestError(
            f"max_batch is {max_batch}, and the engines of {choice.target} take at most {choice.max_images} images at "
            f"once; build for more with: bitdance-edge build {bundle.folder} --target {choice.target} "
            f"--max-images {max_batch}"
        )
    if choice.free_bytes is None:
        return max_batch or min(limit, DEFAULT_BATCH)
    if max_batch is None:
        max_batch = max(1, most_images(bundle, min(limit, DEFAULT_BATCH), choice.free_bytes, files=choice.files))
    require_memory(bundle, max_batch, choice.free_bytes, files=choice.files)
    return max_batch


def token_request(settings: Settings) -> TokenRequest:
    """A batch of settings as the loop takes it."""
    prompt, padding = settings.prompt()
    return TokenRequest(
        images=len(settings.images),
        prompt=prompt,
        padding=padding,
        size=settings.size,
        steps=settings.steps,
        guidance=settings.guidance,
        guidance_schedule=settings.guidance_schedule,
        sampler=settings.sampler,
        prefix=settings.prefix,
    )
