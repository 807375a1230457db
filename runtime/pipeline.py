"""The front door: open a bundle, stream a request, get images."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from bitdance_edge.runtime.backend import Backend, Stage, StageTime
from bitdance_edge.runtime.bundle import Bundle, ImageSize
from bitdance_edge.runtime.errors import BackendError, Cancelled, RequestError
from bitdance_edge.runtime.image import GeneratedImage, image_settings
from bitdance_edge.runtime.loop import TokenRequest, generate_tokens
from bitdance_edge.runtime.noise import ImageNoise, Stream, normals
from bitdance_edge.runtime.onnxruntime_backend import OnnxRuntimeBackend
from bitdance_edge.runtime.prompt import PromptEncoder
from bitdance_edge.runtime.request import Request, Settings

UNSEEN = 128  # gray of what a preview has not reached


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


class Pipeline:
    """A bundle on one device. Stages are checked and loaded on first use; one thread may use it at a time."""

    def __init__(self, bundle: Bundle, backend: Backend, max_batch: int) -> None:
        self.bundle, self.backend, self.max_batch = bundle, backend, max_batch
        self._stages: dict[str, Stage] = {}

    @cached_property
    def _encoder(self) -> PromptEncoder | None:
        return None if self.bundle.text is None else PromptEncoder.open(self.bundle)

    @classmethod
    def open(
        cls,
        bundle: str | Path,
        *,
        device: str = "auto",
        threads: int | None = None,
        max_batch: int = 16,
        trace: str | Path | None = None,
    ) -> "Pipeline":
        """Open a bundle.

        Args:
            device: "auto" or "cpu".
            threads: of each graph; None is one a physical core.
            max_batch: images that run together; a larger request runs in parts.
            trace: folder for one operator trace a stage (Chrome's format), complete when the pipeline is closed.

        Raises:
            BundleError: the bundle is missing, altered or of another format.
            BackendError: nothing is installed that can run it.
        """
        if device not in ("auto", "cpu"):
            raise BackendError(f"device is {device!r}; this version runs on 'cpu' ('auto' chooses it)")
        if max_batch < 1 or (threads is not None and threads < 1):
            raise RequestError(f"threads is {threads} and max_batch {max_batch}; both must be at least 1")
        opened = Bundle.open(bundle)
        return cls(opened, OnnxRuntimeBackend(opened, threads, None if trace is None else Path(trace)), max_batch)

    def close(self) -> None:
        """Give the sessions back."""
        for stage in self._stages.values():
            stage.close()
        self._stages.clear()

    def times(self) -> dict[str, StageTime]:
        """Launches and seconds of every stage that has run since the pipeline was opened."""
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

        Setting ``cancel`` from any thread ends it before the next patch, as does closing the iterator.

        Raises:
            RequestError: the request asks for what this bundle cannot give.
            Cancelled: ``cancel`` was set.
        """
        settings = request.resolve(self.bundle, self._encoder)
        return self._stream(settings, cancel or threading.Event())

    def tokenize(self, pixels: np.ndarray) -> np.ndarray:
        """Images uint8 ``[B, H, W, 3]`` of one of the bundle's sizes to tokens int8 ``[B, h*w, C]``.

        The tokens are in generation order.
        """
        pixels = np.asarray(pixels)
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] != 3:
            raise RequestError(f"pixels are {pixels.dtype} {list(pixels.shape)}; they must be uint8 [B, H, W, 3]")
        size = self.bundle.model.size(*pixels.shape[1:3])
        tokens = self._run("encoder", {"pixels": pixels}, "tokens", len(pixels), size)
        return tokens.reshape(len(pixels), size.tokens, -1).astype(np.int8)

    def decode(
        self, tokens: np.ndarray, seeds: list[int] | None = None, size: tuple[int, int] | None = None
    ) -> np.ndarray:
        """Tokens ``[B, h*w, C]`` in generation order to images uint8 ``[B, H, W, 3]``.

        Args:
            seeds: one an image; they matter only for decoders that draw their texture from noise (0 where not given).
            size: (height, width) of the images in pixels; None is the bundle's default.
        """
        model = self.bundle.model
        wanted = model.default_size if size is None else model.size(*size)
        tokens = np.asarray(tokens)
        if tokens.ndim != 3 or tokens.shape[1:] != (wanted.tokens, model.bits):
            raise RequestError(
                f"tokens are {list(tokens.shape)}; for {wanted} pixels they must be [B, {wanted.tokens}, {model.bits}]"
            )
        inputs = {"tokens": tokens}
        if model.decoder_noise:
            shape = (wanted.tokens, model.bits)
            seeds = seeds or [0] * len(tokens)
            inputs["noise"] = np.stack([normals(seed, Stream.DECODER, 0, 1, shape)[0] for seed in seeds])
        return self._run("decoder", inputs, "pixels", len(tokens), wanted)

    def reconstruct(self, pixels: np.ndarray) -> np.ndarray:
        """Images through the tokenizer and back, uint8 ``[B, H, W, 3]``."""
        height, width = np.shape(pixels)[1:3]
        return self.decode(self.tokenize(pixels), size=(height, width))

    def _stage(self, name: str) -> Stage:
        if name not in self._stages:
            self._stages[name] = self.backend.load(name)
        return self._stages[name]

    def _run(self, stage: str, inputs: dict[str, np.ndarray], output: str, images: int, size: ImageSize) -> np.ndarray:
        spec = self.bundle.stage(stage)
        buffers = {
            tensor.name: self.backend.empty(tensor.sized({"B": images, **size.dims}), tensor.dtype)
            for tensor in (*spec.inputs, *spec.outputs)
        }
        for name, values in inputs.items():
            # The stages see a sequence by rows of patches; the values and their order are the same.
            buffers[name].write(values.reshape(buffers[name].shape))
        self._stage(stage).bind(buffers)()
        return buffers[output].read()

    def _stream(self, settings: Settings, cancel: threading.Event) -> Iterator[Event]:
        for batch in settings.batches(self.max_batch):
            yield from self._stream_batch(batch, cancel)

    def _stream_batch(self, settings: Settings, cancel: threading.Event) -> Iterator[Event]:
        model, first, done = self.bundle.model, settings.images[0].index, []
        patches = settings.size.patches
        seeds = [image.seed for image in settings.images]
        noise = ImageNoise(seeds, settings.steps, (model.tokens_per_step, model.bits))
        stages = {name: self._stage(name) for name in ("prompt", "tokens", "time", "backbone", "head")}
        generated = generate_tokens(self.backend, self.bundle, stages, token_request(settings), noise)
        while len(done) < patches:
            if cancel.is_set():
                raise Cancelled(f"cancelled after {len(done)} of {patches} patches")
            done.append(next(generated).astype(np.int8))
            at = {"first_image": first, "patch": len(done), "patches": patches}
            yield PatchDone(tokens=done[-1], **at)
            if settings.preview_every and len(done) % settings.preview_every == 0 and len(done) < patches:
                yield Preview(pixels=self._preview(settings, np.concatenate(done, axis=1)), **at)
        yield from self._finish(settings, np.concatenate(done, axis=1))

    def _finish(self, settings: Settings, tokens: np.ndarray) -> Iterator[Event]:
        seeds = [image.seed for image in settings.images]
        size = (settings.size.height, settings.size.width)
        pixels = self.decode(tokens, seeds, size) if settings.decode else [None] * len(tokens)
        for i, image in enumerate(settings.images):
            described: dict[str, Any] = image_settings(
                bundle=self.bundle.name,
                digest=self.bundle.digest,
                image=image,
                size=size,
                steps=settings.steps,
                guidance=settings.guidance,
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

    def _preview(self, settings: Settings, tokens: np.ndarray) -> np.ndarray:
        """Decode with the missing tokens at zero, and gray out what is not drawn yet."""
        size, known = settings.size, tokens.shape[1]
        padded = np.zeros((len(tokens), size.tokens, self.bundle.model.bits), np.float32)
        padded[:, :known] = tokens
        seeds = [image.seed for image in settings.images]
        pixels = self.decode(padded, seeds, (size.height, size.width))
        drawn = np.zeros(size.tokens, bool)
        drawn[:known] = True
        cells = sequence_to_grid(drawn, size.grid_height, size.grid_width, self.bundle.model.patch_side)
        scale = size.height // size.grid_height, size.width // size.grid_width
        pixels[:, ~np.kron(cells, np.ones(scale, bool))] = UNSEEN
        return pixels


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
        prefix=settings.prefix,
    )


def sequence_to_grid(values: np.ndarray, height: int, width: int, patch_side: int) -> np.ndarray:
    """One value a token, ``[h*w]`` in generation order, to ``[h, w]``."""
    patches = values.reshape(height // patch_side, width // patch_side, patch_side, patch_side)
    return patches.transpose(0, 2, 1, 3).reshape(height, width)
