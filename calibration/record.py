"""Step 1, record: the inputs of every stage in real generations, as a data set on disk, one file an image.

A recording that was stopped goes on from the images that are complete. A sample is taken just before a launch. The
cache is omitted: a stage's samples of one image, run in order, make it again. Of the head's many evaluations every
patch keeps some, staggered so that all sampling times are covered.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from bitdance_edge.calibration.finite import require_finite
from bitdance_edge.calibration.recipe import Draw
from bitdance_edge.calibration.recorded_file import read_launches
from bitdance_edge.calibration.sessions import CACHE_INPUT, BundleSessions, StageRun
from bitdance_edge.runtime import PatchDone, Pipeline
from bitdance_edge.runtime.backends.onnxruntime import HostBuffer
from bitdance_edge.runtime.bundle.files import written_whole
from bitdance_edge.runtime.bundle.specs import StageSpec
from bitdance_edge.runtime.bundle.stage_names import StageName
from bitdance_edge.runtime.request import Request

SAMPLED_STAGES = (StageName.MODULATION, StageName.HEAD)  # whose samples belong to sampling times
HEAD_EVALUATIONS = 8  # kept of each patch, about


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

    def replay(self, run: StageRun, outputs: list[str]) -> list[np.ndarray]:
        """Run the launch again; the samples of an image must come in order."""
        return run(self.inputs, outputs, first=self.launch == 0)


@dataclass(frozen=True)
class DataSet:
    """Recorded samples: a folder with ``set.json`` and one file an image."""

    folder: Path
    images: int
    steps: int
    stages: Mapping[str, StageSpec]  # whose inputs were recorded

    def samples(self, stage: str) -> Iterator[Sample]:
        """Yield the samples of one stage, image by image and in the order of its launches.

        Raises:
            CalibrationError: a file is missing or damaged, or holds other values than this stage takes.
        """
        for image in range(self.images):
            file = image_file(self.folder, image)
            for launch, inputs in sorted(read_launches(file, stage, self.stages[stage]).items()):
                yield Sample(stage, image, launch, self._step(stage, launch, inputs), inputs)

    def _step(self, stage: str, launch: int, inputs: Mapping[str, np.ndarray]) -> int:
        evaluations = self.steps + 1
        if stage == StageName.MODULATION:
            at_once = len(inputs["time_embeddings"])
            return launch % -(-evaluations // at_once) * at_once
        return launch % evaluations if stage == StageName.HEAD else 0


def record(sessions: BundleSessions, draw: Draw, folder: Path) -> DataSet:
    """Record a draw into a folder of its own inside ``folder``; images that are recorded already are kept.

    Raises:
        CalibrationError: an empty draw, or a stage makes values that are not finite.
        BackendError, RequestError: the bundle cannot be run here, or not with these settings.
    """
    bundle = sessions.bundle
    requests = list(draw.requests(bundle.model, 1))
    steps = requests[0].resolve(bundle).steps
    described = json.dumps({"bundle": bundle.digest, **asdict(draw)}, indent=1, sort_keys=True) + "\n"
    place = folder / f"data-{hashlib.sha256(described.encode()).hexdigest()[:12]}"
    missing = [image for image in range(draw.images) if not image_file(place, image).is_file()]
    if missing:
        with written_whole(place / "set.json") as file:
            file.write(described.encode())
    recorder = Recorder(bundle.stages, steps)
    for image in tqdm(missing, desc="record", unit="image", leave=False, disable=None):
        recorder.start(image)
        with sessions.pipeline(1, before=recorder.note) as pipeline:  # a new one keeps nothing of the image before
            _generate(pipeline, requests[image], draw)
        require_finite(bundle, recorder.arrays, sessions.threads)
        with written_whole(image_file(place, image)) as file:
            np.savez(file, **recorder.arrays)  # type: ignore[arg-type]
    return DataSet(place, draw.images, steps, bundle.stages)


def _generate(pipeline: Pipeline, request: Request, draw: Draw) -> None:
    """Take one image through all stages; where it is only begun, the decoder gets its first patches repeated."""
    model, done = pipeline.bundle.model, []
    for event in pipeline.stream(request):
        if isinstance(event, PatchDone):
            done.append(event.tokens)
        if len(done) == draw.patches:
            break
    tokens = np.resize(np.concatenate(done, axis=1), (1, draw.image_size(model).tokens, model.bits))
    pipeline.tokenize(pipeline.decode(tokens, [request.seed or 0], draw.size))


@dataclass
class Recorder:
    """Keeps what the stages are given in one image (an ``Observer``), under ``stage/launch/input``."""

    stages: Mapping[str, StageSpec]
    steps: int
    image: int = 0
    launches: dict[str, int] = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)

    def start(self, image: int) -> None:
        self.image, self.launches, self.arrays = image, {}, {}

    def note(self, stage: str, buffers: Mapping[str, HostBuffer]) -> None:
        launch = self.launches.get(stage, 0)
        self.launches[stage] = launch + 1
        if stage == StageName.HEAD and not self._kept(launch):
            return
        for tensor in self.stages[stage].inputs:
            if not tensor.name.startswith(CACHE_INPUT):
                self.arrays[f"{stage}/{launch}/{tensor.name}"] = buffers[tensor.name].read()

    def _kept(self, launch: int) -> bool:
        patch, step = divmod(launch, self.steps + 1)
        stride = -(-(self.steps + 1) // HEAD_EVALUATIONS)
        return step == self.steps or (step + patch + self.image) % stride == 0


def image_file(folder: Path, image: int) -> Path:
    """The file of one image in a data set's folder."""
    return folder / f"image-{image:05d}.npz"
