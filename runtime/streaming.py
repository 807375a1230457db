"""A request as a stream of events: batch by batch, patch by patch, images and previews as they are decoded."""

import threading
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import replace
from functools import partial

import numpy as np

from bitdance_edge.runtime.backends.interface import Arrived, Pending
from bitdance_edge.runtime.blend import blended
from bitdance_edge.runtime.bundle.manifest import Bundle
from bitdance_edge.runtime.bundle.stage_names import StageName
from bitdance_edge.runtime.candidates import Likeliest, Likelihood
from bitdance_edge.runtime.edit_settings import given_settings
from bitdance_edge.runtime.errors import Cancelled
from bitdance_edge.runtime.events import Event, ImageDone, PatchDone, PendingEvents, Preview
from bitdance_edge.runtime.image import GeneratedImage, image_settings
from bitdance_edge.runtime.loaded import LoadedBundle
from bitdance_edge.runtime.loop import TokenRequest, generate_tokens
from bitdance_edge.runtime.noise import ImageNoise
from bitdance_edge.runtime.preview import PreviewBudget
from bitdance_edge.runtime.request import Settings


def stream_batches(loaded: LoadedBundle, batches: Sequence[Settings], cancel: threading.Event) -> Iterator[Event]:
    """Yield the events of a request's batches, which run one after the other.

    Raises:
        Cancelled: ``cancel`` was set; checked before each patch.
    """
    pending: deque[PendingEvents] = deque()
    for batch in batches:
        yield from _stream_batch(loaded, batch, cancel, pending)
    while pending:
        yield from pending.popleft().wait()


def with_init(loaded: LoadedBundle, settings: Settings) -> Settings:
    """Encode the image that a request changes, or decode it where its tokens alone are given and pixels are kept."""
    edit, given, size = settings.edit, settings.given, settings.size
    if edit is None:
        return settings
    if edit.encode and edit.pixels is not None:
        tokens = loaded.encode(edit.pixels, size).wait().astype(np.float32)
        tokens = np.broadcast_to(tokens.reshape(len(tokens), *given.tokens.shape[1:]), given.tokens.shape)
        return replace(settings, given=replace(given, tokens=tokens), edit=replace(edit, encode=False))
    if edit.pixels is None and edit.blend and settings.decode:
        tokens = given.tokens.reshape(len(given.tokens), size.tokens, -1)
        return replace(settings, edit=replace(edit, pixels=loaded.decode(tokens, _seeds(settings), size).wait()))
    return settings


def _stream_batch(
    loaded: LoadedBundle, batch: Settings, cancel: threading.Event, pending: deque[PendingEvents]
) -> Iterator[Event]:
    """Yield the events of a batch; what is being decoded at its end stays in ``pending``.

    Of several candidates, patches and previews are those of the first of each image.
    """
    previews = BatchPreviews(loaded, batch)
    rounds, patches = batch.rounds(loaded.max_batch), batch.size.patches
    likeliest = Likeliest(batch)
    for number, drawn in enumerate(rounds):
        likelihood, done = Likelihood(drawn.given), []
        each = len(drawn.images) // len(batch.images)
        with closing(_patches(loaded, drawn, cancel, likelihood)) as sampled:
            for tokens in sampled:
                done.append(tokens)
                at = {
                    "first_image": batch.images[0].index,
                    "patch": number * patches + len(done),
                    "patches": len(rounds) * patches,
                }
                yield PatchDone(tokens=tokens[::each], **at)
                if number == 0 and (preview := previews.after(done, at, each)) is not None:
                    pending.append(preview)
                yield from _decoded(pending)
        likeliest.compare(np.concatenate(done, axis=1), drawn, likelihood.total)
    batch, tokens = likeliest.batch, likeliest.tokens
    finish = partial(_images, loaded.bundle, batch, tokens)
    if not batch.decode:
        yield from finish([None] * len(tokens))
        return
    pending.append(PendingEvents(loaded.decode(tokens, _seeds(batch), batch.size), finish))
    yield from _decoded(pending)


def _patches(
    loaded: LoadedBundle, batch: Settings, cancel: threading.Event, likelihood: Likelihood
) -> Generator[np.ndarray, None, None]:
    """Yield the tokens of each patch, int8 ``[B, P, C]``; the loop is idle again when the last was taken."""
    model, request, patches = loaded.bundle.model, token_request(batch), batch.size.patches
    noise = ImageNoise(
        _seeds(batch),
        batch.steps,
        (model.tokens_per_step, model.bits),
        start_only=batch.sampler == "ode",
        ahead=patches,
    )
    judge = likelihood.add if batch.candidates > 1 else None
    with loaded.loop(request.shape) as loop, closing(generate_tokens(loop, request, noise, judge)) as generated:
        for patch in range(patches):
            if cancel.is_set():
                raise Cancelled(f"cancelled after {patch} of {patches} patches")
            yield next(generated).astype(np.int8)


def _decoded(pending: deque[PendingEvents]) -> Iterator[Event]:
    """Yield the events of what has been decoded meanwhile, in order."""
    while pending and pending[0].done():
        yield from pending.popleft().wait()


def _images(
    bundle: Bundle, batch: Settings, tokens: np.ndarray, pixels: np.ndarray | Sequence[None]
) -> Iterator[Event]:
    for i, image in enumerate(batch.images):
        described = image_settings(
            bundle=bundle.name,
            digest=bundle.digest,
            image=image,
            size=batch.size.pixels,
            steps=batch.steps,
            guidance=batch.guidance,
            guidance_schedule=batch.guidance_schedule,
            sampler=batch.sampler,
            window=batch.window or 1,
            given=given_settings(batch, i),
        )
        seen = pixels[i]
        if seen is not None and batch.edit is not None and batch.edit.blend and batch.edit.mask is not None:
            seen = blended(seen, batch.edit.original(i), batch.edit.mask)
        made = GeneratedImage(
            index=image.index,
            class_id=image.class_id,
            prompt=image.prompt,
            seed=image.seed,
            tokens=tokens[i],
            pixels=seen,
            settings=described,
        )
        yield ImageDone(image=made)


class BatchPreviews:
    """The previews of one batch, as often and of the kind that its settings say."""

    def __init__(self, loaded: LoadedBundle, batch: Settings) -> None:
        self.loaded, self.batch = loaded, batch
        fast = batch.preview_every and batch.preview_kind == "fast"
        self.canvas = loaded.preview_canvas(len(batch.images), batch.size) if fast else None
        self.budget = None if batch.preview_share is None else self._budget(batch.preview_share)

    def after(self, done: Sequence[np.ndarray], at: Mapping[str, int], each: int = 1) -> PendingEvents | None:
        """The preview that is due after the patches ``done``, each int8 ``[B, P, C]``; None if none is.

        Args:
            at: the fields ``first_image``, ``patch`` and ``patches`` of its event.
            each: rows of an image; the first of them is shown.
        """
        if self.canvas is not None:
            self.canvas.add(done[-1][::each])
        every, patch = self.batch.preview_every, len(done)
        if not every or patch % every or patch == self.batch.size.patches:
            return None
        if self.budget is not None and not self.budget.allows():
            return None
        shown = [tokens[::each] for tokens in done]
        return PendingEvents(self._pixels(shown), lambda pixels: iter([Preview(pixels=pixels, **at)]))

    def _pixels(self, done: Sequence[np.ndarray]) -> Pending:
        if self.canvas is not None:
            return Arrived(self.canvas.pixels.copy())
        with nullcontext() if self.budget is None else self.budget.paying():
            return self.loaded.preview(np.concatenate(done, axis=1), _seeds(self.batch), self.batch.size)

    def _budget(self, share: float) -> PreviewBudget:
        """A budget whose first preview is expected to take what the pipeline's decodings took."""
        time = self.loaded.image_stage(StageName.DECODER).stage.time
        return PreviewBudget(share, time.seconds / max(1, time.launches))


def _seeds(batch: Settings) -> list[int]:
    return [image.seed for image in batch.images]


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
        given=settings.given,
        window=settings.window or 1,
    )
