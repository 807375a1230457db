"""The plan of a job: every image, the launches that they run in, and the shards that they go into.

Image i has seed ``seed + i`` and shows subject i, counted around: each subject once, then each once more. A part of a
job shows all of them equally often, which scores assume. Shard k holds ``shard_images`` images from image
``k * shard_images``; of these, ``images_at_once`` run together, in order. Nothing else decides what a shard holds, so
every worker writes the same bytes.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tqdm import tqdm

from bitdance_edge.runtime import Bundle, Request
from bitdance_edge.runtime.prompt import PromptEncoder
from bitdance_edge.runtime.request import MAX_COUNT, MAX_SEED
from bitdance_edge.runtime.values import one_of, whole
from bitdance_edge.scale.errors import ScaleError

FORMAT = 1
FORMATS = ("tar", "parquet", "npz")
SETTINGS = ("negative_prompt", "size", "steps", "guidance", "guidance_schedule", "sampler")  # fields of Request
OF_IMAGES = ("negative_prompt", "size")  # which a resolved request has elsewhere, or otherwise
SHARD_IMAGES, IMAGES_AT_ONCE = 256, 16
MOST_IMAGES = 1_000_000_000
MOST_SHARDS = 10_000_000
DIGITS = 5  # of a shard's number in its name, at least
CHECKED_TOGETHER = 1000  # prompts


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A job, complete.

    Attributes:
        bundle: its folder, relative to the current directory.
        bundle_sha256: the bundle's digest.
        subjects: class ids or prompts; ``count`` images are made of each.
        seed: of the first image.
        settings: the fields of ``Request`` in ``SETTINGS``, with the bundle's defaults filled in.
        images_at_once: images of a launch, at most.
        shard_images: images of a shard; the last one may have fewer.
        file_format: of the shards, one of ``FORMATS``.
    """

    bundle: str
    bundle_sha256: str
    subjects: tuple[int | str, ...]
    count: int
    seed: int
    settings: Mapping[str, Any]
    images_at_once: int
    shard_images: int
    file_format: str

    @property
    def kind(self) -> str:
        """The field of ``Request`` that the subjects are given as."""
        return "prompts" if isinstance(self.subjects[0], str) else "classes"

    @property
    def images(self) -> int:
        return len(self.subjects) * self.count

    @property
    def shards(self) -> int:
        return math.ceil(self.images / self.shard_images)

    @cached_property
    def job(self) -> str:
        """The digest of everything that decides the bytes of the shards: SHA-256 in hexadecimal digits."""
        return hashlib.sha256(json.dumps(self._deciding(), sort_keys=True).encode()).hexdigest()

    def name(self, shard: int) -> str:
        """The name of a shard's files, without suffix."""
        return f"{shard:0{max(DIGITS, len(str(self.shards - 1)))}d}"

    def file(self, shard: int) -> str:
        return f"{self.name(shard)}.{self.file_format}"

    def images_of(self, shard: int) -> range:
        """The images of a shard, by their index in the job."""
        first = shard * self.shard_images
        return range(first, min(first + self.shard_images, self.images))

    def subject(self, image: int) -> int | str:
        return self.subjects[image % len(self.subjects)]

    def launches(self, shard: int) -> Iterator[Request]:
        """Yield the requests that make a shard, each of images that run together."""
        images = self.images_of(shard)
        for first in range(images.start, images.stop, self.images_at_once):
            part = range(first, min(first + self.images_at_once, images.stop))
            subjects: Any = [self.subject(i) for i in part]
            seeds = [self.seed + i for i in part]
            # A window rounds otherwise, and which one is faster depends on the machine; the bytes must not.
            yield Request(**{self.kind: subjects}, **self.settings, seeds=seeds, window=1)

    def to_json(self) -> str:
        """The plan as ``plan.json`` has it."""
        return json.dumps({"format": FORMAT, "job": self.job, "bundle": self.bundle, **self._deciding()}, indent=1)

    def differences(self, other: "Plan") -> list[str]:
        """Name each thing that decides the bytes and differs, with both values."""
        ours, theirs = ({**each.pop("settings"), **each} for each in (self._deciding(), other._deciding()))
        return [
            f"{name} {_short(theirs.get(name))} instead of {_short(ours.get(name))}"
            for name in {**ours, **theirs}
            if ours.get(name) != theirs.get(name)
        ]

    def _deciding(self) -> dict[str, Any]:
        return {
            "bundle_sha256": self.bundle_sha256,
            self.kind: list(self.subjects),
            "count": self.count,
            "seed": self.seed,
            "settings": dict(self.settings),
            "images_at_once": self.images_at_once,
            "shard_images": self.shard_images,
            "file_format": self.file_format,
        }


def make_plan(
    folder: str,
    *,
    classes: Sequence[int | str] | str = (),
    prompts: Sequence[str] = (),
    count: int = 1,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    images_at_once: int = IMAGES_AT_ONCE,
    shard_images: int = SHARD_IMAGES,
    file_format: str = FORMATS[0],
) -> Plan:
    """Plan ``count`` images of each class or prompt, and check all of it against the bundle in ``folder``.

    Args:
        classes: ids or names, or "all".
        settings: some of the fields of ``Request`` named in ``SETTINGS``, and ``published``.

    Raises:
        ScaleError: nothing is to be made, or too much.
        RequestError: a value is not allowed, or the bundle cannot draw a subject; names it.
        BundleError: there is no bundle.
    """
    bundle = Bundle.open(folder)
    if classes == "all":
        classes = range(bundle.model.num_classes)
    if bool(classes) == bool(prompts):
        raise ScaleError("a job is of classes or of prompts: give --classes or --prompts, one of the two")
    subjects = list(classes or prompts)
    count = whole("count", count, 1, MAX_COUNT)
    shard_images = whole("shard_images", shard_images, 1, MAX_COUNT)
    images, most = len(subjects) * count, min(MOST_IMAGES, MOST_SHARDS * shard_images)
    if images > most:
        raise ScaleError(f"these are {images:,} images; a job makes {most:,} at most: make several jobs of them")
    resolved, ids = _checked(bundle, "prompts" if prompts else "classes", subjects, dict(settings or {}))
    return Plan(
        bundle=folder,
        bundle_sha256=bundle.digest,
        subjects=tuple(ids or subjects),
        count=count,
        seed=whole("seed", seed, 0, MAX_SEED - images + 1),
        settings=resolved,
        images_at_once=min(whole("images_at_once", images_at_once, 1, MAX_COUNT), shard_images),
        shard_images=shard_images,
        file_format=one_of("file_format", file_format, FORMATS),
    )


def _checked(
    bundle: Bundle, kind: str, subjects: Sequence[Any], settings: dict[str, Any]
) -> tuple[dict[str, Any], list[int]]:
    """Resolve the settings against a bundle; returns them and the ids of the subjects that are classes."""
    encoder = PromptEncoder.open(bundle) if bundle.text is not None else None
    found: dict[str, Any] = {}
    ids: list[int] = []
    parts = range(0, len(subjects), CHECKED_TOGETHER)
    for first in tqdm(parts, "checking subjects", leave=False, disable=None if len(parts) > 1 else True):
        request = Request(**{kind: subjects[first : first + CHECKED_TOGETHER]}, **settings)
        resolved = request.resolve(bundle, encoder)
        ids += [image.class_id for image in resolved.images if image.class_id is not None]
        if not first:
            found = {name: getattr(resolved, name) for name in SETTINGS if name not in OF_IMAGES}
            found |= {"size": str(resolved.size.pixels), "negative_prompt": resolved.images[0].negative_prompt}
    return {name: value for name, value in found.items() if value is not None}, ids


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
