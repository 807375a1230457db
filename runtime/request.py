"""A request: what to generate, validated in one place."""

import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bitdance_edge.runtime.bundle.manifest import Bundle
from bitdance_edge.runtime.bundle.size import Size
from bitdance_edge.runtime.bundle.specs import CLASS_CONDITIONAL, ImageSize
from bitdance_edge.runtime.edit import Edit, resolve_edit
from bitdance_edge.runtime.errors import RequestError
from bitdance_edge.runtime.given import GivenTokens
from bitdance_edge.runtime.preview import KINDS as PREVIEW_KINDS
from bitdance_edge.runtime.prompt import PromptEncoder, padded
from bitdance_edge.runtime.sampler import GUIDANCE_SCHEDULES, MAX_GUIDANCE, MAX_STEPS, MAX_WINDOW, SAMPLERS
from bitdance_edge.runtime.tokens import checked_tokens
from bitdance_edge.runtime.values import items, one_of, real, shown, switch, text, whole

MAX_SEED = 2**63 - 1
MAX_COUNT = 1_000_000  # images of a request
MAX_CANDIDATES = 1000  # of each image
CLASS_DIGITS = 9  # of a class id given as text
OUTPUTS = ("image", "tokens")
AUTO = "auto"  # of a window


@dataclass(frozen=True, kw_only=True)
class Request:
    """Images to generate. Fields that are None take the bundle's default.

    Numbers may be Python's or numpy's. ``classes``, ``prompts`` and ``seeds`` may be one value, or any iterable with an
    order: a list, an array, a range, a generator.

    Attributes:
        classes: of a class-conditional bundle: ids, or names where it has them.
        prompts: of a text-to-image bundle. Images come class by class or prompt by prompt, ``count`` of each.
        negative_prompt: what guidance leads away from; None, or text without a word: no text at all.
        seed: image i of the request uses seed + i (seed + i * candidates); None: a seed is drawn at random.
        seeds: one an image, in place of ``seed``, for images of several requests that run as one.
        steps: sampling steps of each patch, one head evaluation each, plus a last one.
        guidance: 1 switches guidance off.
        guidance_schedule: "constant", or "linear" over the patches, from none at the first.
        sampler: "sde", the reference's, or "ode", its deterministic limit, without noise after the start of a patch.
        published: fields that are None take the settings that the checkpoint was published with.
        size: in pixels, as ``Size(width=, height=)`` or "WIDTHxHEIGHT".
        prefix: tokens ``[K, C]`` or ``[images, K, C]`` of -1 and +1 that start each image, K a whole number of patches.
        init: an image to change: pixels uint8 ``[H, W, 3]`` of ``size``, or tokens ``[h*w, C]``; for several images
            also one each, ``[images, ...]``. It needs a mask, a strength or both.
        init_tokens: of ``init``, where they are known already, so that its pixels are not encoded.
        mask: True where ``init`` is redrawn, bool ``[H, W]`` of pixels or ``[h, w]`` of tokens; None: everywhere. Every
            other token is kept. A token with any pixel to redraw is redrawn.
        strength: how much of it, from 0 (``init`` itself, as its tokens have it) to 1 (drawn from nothing, the default
            with a mask); or one such number a patch, by rows of patches.
        candidates: draw this number for each image, with seeds that follow each other, and keep the one behind which
            the kept patches are likeliest.
        blend: with a mask, keep the pixels outside it, and join what is drawn to them. False: all pixels are decoded.
        preview_every: patches between two previews; 0: no previews.
        preview_kind: "full", by the decoder, or "fast", by a linear approximation of it.
        preview_share: skip full previews that would take more than this share of the time so far, judging by what
            decoding took before (the first decoding of a pipeline is never skipped). Without preview_every, one may
            follow every patch.
        output: "image", or "tokens" to omit the decoder.
        batch_invariant: run the images one by one, so that each has the same bits in any batch.
        window: head evaluations in one pass (docs/sampler.md): 1, one after the other; from 2 to 64; "auto": what the
            bundle's own measurements and a few timed launches say is faster. Images are the same but for rounding.
    """

    classes: Iterable[int | str] | int | str | None = ()
    prompts: Iterable[str] | str | None = ()
    negative_prompt: str | None = None
    count: int = 1
    seed: int | None = None
    seeds: Iterable[int] | int | None = None
    steps: int | None = None
    guidance: float | None = None
    guidance_schedule: str | None = None
    sampler: str | None = None
    published: bool = False
    size: Size | str | None = None
    prefix: np.ndarray | Sequence[Any] | None = None
    init: Any = None
    init_tokens: np.ndarray | Sequence[Any] | None = None
    mask: Any = None
    strength: float | Sequence[Any] | np.ndarray | None = None
    candidates: int = 1
    blend: bool = True
    preview_every: int = 0
    preview_kind: str = "full"
    preview_share: float | None = None
    output: str = "image"
    batch_invariant: bool = False
    window: int | str = 1

    def __post_init__(self) -> None:
        """Keep what may be consumed only once, such as a generator, as a tuple."""
        for name in ("classes", "prompts", "seeds"):
            if name != "seeds" or self.seeds is not None:
                object.__setattr__(self, name, items(name, getattr(self, name)))

    @property
    def subjects(self) -> tuple[int | str, ...]:
        """The classes, or the prompts, that ``count`` images are made of each."""
        return (*items("classes", self.classes), *items("prompts", self.prompts))

    @classmethod
    def example(cls, bundle: Bundle) -> "Request":
        """A request for something the bundle can draw: its first class, or the prompt that came with it."""
        return cls(classes=[0]) if bundle.text is None else cls(prompts=[bundle.text.example])

    def resolve(self, bundle: Bundle, encoder: PromptEncoder | None = None) -> "Settings":
        """Fill in the bundle's defaults and check every value against it.

        Args:
            encoder: of the bundle's prompts; None: it is opened where it is needed.

        Raises:
            RequestError: names the value and what is allowed.
        """
        model = bundle.model
        if not model.generates:
            raise RequestError(
                f"{bundle.name} is a tokenizer, which draws nothing: use tokenize, decode or reconstruct, or open the "
                "bundle of a generator"
            )
        default = bundle.published_sampling if switch("published", self.published) else bundle.sampling
        count = whole("count", self.count, 1, MAX_COUNT)
        guidance = real(default.guidance if self.guidance is None else self.guidance)
        schedule = default.guidance_schedule if self.guidance_schedule is None else self.guidance_schedule
        if not 1 <= guidance <= MAX_GUIDANCE:
            raise RequestError(
                f"guidance is {shown(self.guidance)}; it must be a number from 1 (off) to {MAX_GUIDANCE}"
            )
        size = model.size(self.size)
        subjects = self._subjects(bundle, size, encoder)
        if len(subjects) * count > MAX_COUNT:
            raise RequestError(f"these are {len(subjects) * count:,} images; a request makes {MAX_COUNT:,} at most")
        images = [subject for subject in subjects for _ in range(count)]
        candidates = whole("candidates", self.candidates, 1, MAX_CANDIDATES)
        seeds = self._image_seeds(len(images), candidates)
        edit, given = self._given(len(images), bundle, size)
        if candidates > 1 and not given.judged:
            raise RequestError(
                f"candidates is {candidates}, and they are judged by the kept patches after the first that is redrawn, "
                "of which there are none here: omit candidates, or keep some of the image below or right of the mask"
            )
        return Settings(
            images=tuple(
                replace(image, index=i, seed=seed) for i, (image, seed) in enumerate(zip(images, seeds, strict=True))
            ),
            size=size,
            steps=whole("steps", default.steps if self.steps is None else self.steps, 1, MAX_STEPS),
            guidance=guidance,
            guidance_schedule=one_of("guidance_schedule", schedule, GUIDANCE_SCHEDULES),
            sampler=one_of("sampler", default.sampler if self.sampler is None else self.sampler, SAMPLERS),
            given=given,
            edit=edit,
            candidates=candidates,
            **self._previews(bundle, size),
            decode=one_of("output", self.output, OUTPUTS) == "image",
            batch_invariant=switch("batch_invariant", self.batch_invariant),
            window=self._window(bundle),
        )

    def _window(self, bundle: Bundle) -> int | None:
        if isinstance(self.window, str):
            one_of("window", self.window, [AUTO])
            return None
        window = whole("window", self.window, 1, MAX_WINDOW)
        if window > 1:
            bundle.require_window()
        return window

    def _given(self, images: int, bundle: Bundle, size: ImageSize) -> tuple[Edit | None, GivenTokens]:
        """What the images start from: an image to change, the first patches of one, or nothing."""
        if self.init is not None:
            if self.prefix is not None:
                raise RequestError("prefix and init are both given; a prefix is an init whose mask is False at the top")
            return resolve_edit(
                self.init,
                self.init_tokens,
                self.strength,
                self.mask,
                switch("blend", self.blend),
                images=images,
                bundle=bundle,
                size=size,
            )
        for name in ("mask", "strength", "init_tokens"):
            if getattr(self, name) is not None:
                raise RequestError(f"{name} is given without init, the image to change: give init too, or omit {name}")
        patch_shape = bundle.model.tokens_per_step, bundle.model.bits
        if self.prefix is None:
            return None, GivenTokens.nothing(images, size.patches, patch_shape)
        return None, GivenTokens.prefix(_prefix(self.prefix, images, bundle, size), size.patches)

    def _previews(self, bundle: Bundle, size: ImageSize) -> dict[str, Any]:
        every, share = whole("preview_every", self.preview_every, 0, size.patches), self.preview_share
        kind = one_of("preview_kind", self.preview_kind, PREVIEW_KINDS)
        if kind == "fast":
            bundle.require_fast_previews()
        if share is not None and not 0 < real(share) < 1:
            raise RequestError(f"preview_share is {shown(share)}; it must be a number between 0 and 1")
        if share is not None and kind == "fast":
            raise RequestError("preview_share is for full previews; fast ones take next to no time: omit preview_share")
        return {
            "preview_every": 1 if share is not None and not every else every,
            "preview_kind": kind,
            "preview_share": None if share is None else real(share),
        }

    def _image_seeds(self, images: int, candidates: int) -> list[int]:
        if self.seeds is not None:
            if self.seed is not None:
                raise RequestError("seed and seeds are both given; seeds replaces seed: omit one of the two")
            seeds = items("seeds", self.seeds)
            if len(seeds) != images:
                raise RequestError(f"{len(seeds)} seeds for {images} images; give one an image")
            return [whole("seed", seed, 0, MAX_SEED + 1 - candidates) for seed in seeds]
        first = secrets.randbits(32) if self.seed is None else whole("seed", self.seed, 0, MAX_SEED)
        if first + images * candidates - 1 > MAX_SEED:
            drawn = f"{images} images" if candidates == 1 else f"{images} images of {candidates} candidates"
            raise RequestError(f"seed {first} leaves no room for {drawn}; the largest seed is {MAX_SEED}")
        return [first + i * candidates for i in range(images)]

    def _subjects(self, bundle: Bundle, size: ImageSize, encoder: PromptEncoder | None) -> list["ImageSpec"]:
        """What the images show, one of each class or prompt."""
        model, subjects = bundle.model, self.subjects
        away = None if self.negative_prompt is None else text("negative_prompt", self.negative_prompt)
        away = away if away is not None and away.strip() else None
        if model.kind == CLASS_CONDITIONAL:
            if self.prompts or away is not None:
                raise RequestError(f"{bundle.name} draws classes, not prompts; name classes instead")
            if not subjects:
                raise RequestError("no class given; name at least one")
            ids = [class_id(name, bundle) for name in subjects]
            return [ImageSpec(class_id=i, conditional=(i,), unconditional=(model.num_classes,)) for i in ids]
        if self.classes:
            raise RequestError(f"{bundle.name} draws prompts, not classes; give prompts instead")
        if not subjects:
            raise RequestError("no prompt given; give at least one")
        prompts = [text("prompt", prompt) for prompt in subjects]
        encoder = encoder or PromptEncoder.open(bundle)
        negative = encoder.unconditional(size) if away is None else encoder.conditional(away, size)
        return [
            ImageSpec(
                prompt=prompt,
                negative_prompt=away,
                conditional=encoder.conditional(prompt, size),
                unconditional=negative,
            )
            for prompt in prompts
        ]


@dataclass(frozen=True, kw_only=True)
class ImageSpec:
    """One image: what it shows, as the request says it and as ids of its conditional and unconditional row."""

    conditional: tuple[int, ...]
    unconditional: tuple[int, ...]
    class_id: int | None = None
    prompt: str | None = None
    negative_prompt: str | None = None
    index: int = 0
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A request with every default filled in."""

    images: tuple[ImageSpec, ...]
    size: ImageSize
    steps: int
    guidance: float
    guidance_schedule: str
    sampler: str
    given: GivenTokens
    edit: Edit | None  # of an init
    candidates: int  # of each image, whose seed is that of the first
    preview_every: int
    preview_kind: str
    preview_share: float | None
    decode: bool
    batch_invariant: bool
    window: int | None  # None: what is faster

    def batches(self, largest: int) -> list["Settings"]:
        """Split into parts of at most ``largest`` candidates, or of one image (where batches must not matter)."""
        count = 1 if self.batch_invariant else max(1, largest // self.candidates)
        return [
            replace(
                self,
                images=self.images[i : i + count],
                given=self.given.of_images(slice(i, i + count)),
                edit=self.edit and self.edit.of_images(slice(i, i + count)),
            )
            for i in range(0, len(self.images), count)
        ]

    def rounds(self, largest: int) -> list["Settings"]:
        """The candidates of all images, split into parts of at most ``largest``: each image several times in a row."""
        at_once = 1 if self.batch_invariant else min(self.candidates, largest)
        numbers = [range(c, min(c + at_once, self.candidates)) for c in range(0, self.candidates, at_once)]
        return [
            replace(
                self,
                images=tuple(replace(image, seed=image.seed + c) for image in self.images for c in drawn),
                given=self.given.of_images(slice(None), len(drawn)),
            )
            for drawn in numbers
        ]

    def prompt(self) -> tuple[np.ndarray, np.ndarray]:
        """Ids and padding of all rows, conditional ones first: ``TokenRequest.prompt`` and ``padding``."""
        rows = [image.conditional for image in self.images]
        if self.guidance > 1:
            rows += [image.unconditional for image in self.images]
        ids, padding = padded(rows)
        return (ids[:, 0] if self.images[0].class_id is not None else ids), padding


def class_id(name: object, bundle: Bundle) -> int:
    """The id of a class given by id or by name."""
    model = bundle.model
    if not isinstance(name, str):
        return whole("class", name, 0, model.num_classes - 1)
    if name in model.class_names:
        return model.class_names.index(name)
    if name.isascii() and name.isdecimal() and len(name) <= CLASS_DIGITS:
        return whole("class", int(name), 0, model.num_classes - 1)
    names = ", ".join(model.class_names[:12]) + (", ..." if len(model.class_names) > 12 else "")
    known = f" or a name: {names}" if model.class_names else ""
    raise RequestError(f"class {shown(name)} is unknown; give an id from 0 to {model.num_classes - 1}{known}")


def _prefix(prefix: object, images: int, bundle: Bundle, size: ImageSize) -> np.ndarray:
    """Check a prefix: float32 ``[images, K, P, C]``."""
    model, tokens = bundle.model, checked_tokens("prefix", prefix)
    shaped = tokens[None] if tokens.ndim == 2 else tokens
    if (
        shaped.shape[0] not in (1, images)
        or shaped.shape[1] > size.tokens
        or shaped.shape[1] % model.tokens_per_step
        or shaped.shape[2] != model.bits
    ):
        raise RequestError(
            f"prefix has shape {list(tokens.shape)}; it must be [K, {model.bits}] or [{images}, K, {model.bits}] with "
            f"K a multiple of {model.tokens_per_step} tokens, at most {size.tokens}"
        )
    rows = np.broadcast_to(shaped, (images, *shaped.shape[1:])).astype(np.float32)
    return rows.reshape(images, -1, model.tokens_per_step, model.bits)
