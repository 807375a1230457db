"""What every stage is given in real generations, as a data set on disk: one file an image, so that it can be resumed.

A sample is taken just before a launch. The cache is left out: a stage's samples of one image, run in order, make it
again. Of the head's many evaluations every patch keeps some, staggered so that all sampling times are covered.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from tqdm import tqdm

from bitdance_edge.calibration.errors import CalibrationError
from bitdance_edge.calibration.sessions import VariantBackend, pipeline_on
from bitdance_edge.runtime import PatchDone, Pipeline
from bitdance_edge.runtime.backends.observed import ObservedBackend
from bitdance_edge.runtime.backends.onnxruntime import HostBuffer, OnnxRuntimeBackend
from bitdance_edge.runtime.bundle.files import written_whole
from bitdance_edge.runtime.bundle.manifest import Bundle
from bitdance_edge.runtime.bundle.size import Size
from bitdance_edge.runtime.bundle.specs import ImageSize
from bitdance_edge.runtime.request import Request

SAMPLED_STAGES = ("modulation", "head")  # whose samples belong to sampling times
HEAD_EVALUATIONS = 8  # kept of each patch, about
HELD_OUT_SEED = 1_000_000  # held-out images start this far from the recorded ones


@dataclass(frozen=True, kw_only=True)
class Draw:
    """Which images are generated: ``images`` of them, over ``classes`` or ``prompts`` in a seeded order.

    Attributes:
        classes: ids or names; none for all of a class-conditional bundle.
        prompts: of a text-to-image bundle.
        patches: of each image, from its first; None for all.
        size: in pixels. Where it, ``steps`` or ``guidance`` is None, the bundle's is taken.
    """

    images: int
    seed: int
    classes: tuple[int | str, ...] = ()
    prompts: tuple[str, ...] = ()
    size: Size | None = None
    patches: int | None = None
    steps: int | None = None
    guidance: float | None = None

    def requests(self, bundle: Bundle, batch: int) -> Iterator[Request]:
        """The images as requests of at most ``batch``; image i has the seed ``seed + i``.

        Raises:
            CalibrationError: no images or prompts, or a number of patches that the bundle does not have.
        """
        if self.images < 1:
            raise CalibrationError(
                f"the calibration set is empty: it has {self.images} images; give --images a number from 1"
            )
        patches = self.image_size(bundle).patches
        if self.patches is not None and not 1 <= self.patches <= patches:
            raise CalibrationError(f"--patches is {self.patches}; images of this bundle have 1 to {patches}")
        drawn = list(self.prompts) or list(self.classes) or list(range(bundle.model.num_classes))
        if not drawn:
            raise CalibrationError(f"{bundle.name} draws prompts: give --prompts FILE, one prompt a line")
        generator, order = np.random.default_rng(self.seed), []
        while len(order) < self.images:
            order.extend(int(i) for i in generator.permutation(len(drawn)))
        for first in range(0, self.images, batch):
            part: list[Any] = [drawn[i] for i in order[first : min(first + batch, self.images)]]
            yield Request(
                classes=() if self.prompts else part,
                prompts=part if self.prompts else (),
                seed=self.seed + first,
                size=self.size,
                steps=self.steps,
                guidance=self.guidance,
                output="tokens",
            )

    def image_size(self, bundle: Bundle) -> ImageSize:
        return bundle.model.size(self.size)

    def held_out(self, images: int, part: int) -> "Draw":
        """Other images by the same rules; ``part`` tells several such sets apart."""
        return replace(self, images=images, seed=self.seed + HELD_OUT_SEED * (1 + part))


@dataclass(frozen=True)
class Sample:
    """Inputs of one launch of a stage, without its cache.

    ``step`` is the sampling step of a head's launch, the first of those that a launch modulates, else 0.
    """

    stage: str
    image: int
    launch: int
    step: int
    inputs: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class DataSet:
    """Recorded samples: a folder with ``set.json`` and one file an image."""

    folder: Path
    images: int
    steps: int

    def samples(self, stage: str) -> Iterator[Sample]:
        """The samples of one stage, image by image and in the order of its launches.

        Raises:
            CalibrationError: a file is missing or damaged.
        """
        for image in range(self.images):
            launches: dict[int, dict[str, np.ndarray]] = {}
            for key, values in _read(_image_file(self.folder, image), stage).items():
                _, launch, name = key.split("/")
                launches.setdefault(int(launch), {})[name] = values
            for launch, inputs in sorted(launches.items()):
                yield Sample(stage, image, launch, self._step(stage, launch, inputs), inputs)

    def _step(self, stage: str, launch: int, inputs: Mapping[str, np.ndarray]) -> int:
        evaluations = self.steps + 1
        if stage == "modulation":
            at_once = len(inputs["time_embeddings"])
            return launch % -(-evaluations // at_once) * at_once
        return launch % evaluations if stage == "head" else 0


def _read(path: Path, stage: str) -> dict[str, np.ndarray]:
    """The arrays of one stage: ``stage/launch/input`` -> values."""
    try:
        with np.load(path, allow_pickle=False) as data:
            return {key: data[key] for key in data.files if key.startswith(f"{stage}/")}
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        raise CalibrationError(
            f"the recording {path} cannot be read ({error}); delete it and run the same command again"
        ) from None


@dataclass
class _Recorder:
    bundle: Bundle
    steps: int
    image: int = 0
    launches: dict[str, int] = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)

    def start(self, image: int) -> None:
        self.image, self.launches, self.arrays = image, {}, {}

    def note(self, stage: str, buffers: Mapping[str, HostBuffer]) -> None:
        launch = self.launches.get(stage, 0)
        self.launches[stage] = launch + 1
        if stage == "head" and not self._kept(launch):
            return
        for tensor in self.bundle.stage(stage).inputs:
            if not tensor.name.startswith("past_key_values."):
                self.arrays[f"{stage}/{launch}/{tensor.name}"] = buffers[tensor.name].read()

    def _kept(self, launch: int) -> bool:
        patch, step = divmod(launch, self.steps + 1)
        stride = -(-(self.steps + 1) // HEAD_EVALUATIONS)
        return step == self.steps or (step + patch + self.image) % stride == 0


def record(bundle: Bundle, draw: Draw, folder: Path, threads: int | None) -> DataSet:
    """Record a draw into a folder of its own inside ``folder``; images that are there already are kept.

    Raises:
        CalibrationError: an empty draw.
        BackendError, RequestError: the bundle cannot be run here, or not with these settings.
    """
    requests = list(draw.requests(bundle, 1))
    steps = requests[0].resolve(bundle).steps
    described = json.dumps({"bundle": bundle.digest, **asdict(draw)}, indent=1, sort_keys=True) + "\n"
    place = folder / f"data-{hashlib.sha256(described.encode()).hexdigest()[:12]}"
    missing = [image for image in range(draw.images) if not _image_file(place, image).is_file()]
    if missing:
        with written_whole(place / "set.json") as file:
            file.write(described.encode())
        recorder = _Recorder(bundle, steps)
        sessions = {stage: OnnxRuntimeBackend(bundle, threads).load(stage).session for stage in bundle.stages}
        for image in tqdm(missing, desc="record", unit="image", leave=False, disable=None):
            recorder.start(image)
            backend = ObservedBackend(VariantBackend(bundle, threads, sessions), before=recorder.note)
            with pipeline_on(bundle, backend, 1) as pipeline:  # a new one keeps nothing of the image before
                _generate(pipeline, requests[image], draw)
            with written_whole(_image_file(place, image)) as file:
                np.savez(file, **recorder.arrays)  # type: ignore[arg-type]
    return DataSet(place, draw.images, steps)


def _generate(pipeline: Pipeline, request: Request, draw: Draw) -> None:
    """One image through all stages; of a part of an image the decoder gets that part repeated over the whole."""
    size, made = draw.image_size(pipeline.bundle), []
    for event in pipeline.stream(request):
        if isinstance(event, PatchDone):
            made.append(event.tokens)
        if len(made) == draw.patches:
            break
    tokens = np.resize(np.concatenate(made, axis=1), (1, size.tokens, pipeline.bundle.model.bits))
    pipeline.tokenize(pipeline.decode(tokens, [request.seed or 0], draw.size))


def _image_file(folder: Path, image: int) -> Path:
    return folder / f"image-{image:05d}.npz"
