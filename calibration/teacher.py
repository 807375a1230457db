"""Launches under teacher forcing: the bits of whole images are given, so that no stage waits for another's result.

The generation loop itself runs over the given bits and says what every launch of the backbone reads; only the small
stages that embed prompts and bits are run for that. The head is given what it was trained on: the bits of a patch mixed
with noise, ``x = t bits + (1 - t) noise``.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import cast

import numpy as np

from bitdance_edge.calibration.errors import CalibrationError
from bitdance_edge.calibration.graphs import StageGraph
from bitdance_edge.calibration.segments import SegmentRun, whole
from bitdance_edge.calibration.sessions import CACHE_INPUT
from bitdance_edge.runtime.backends.interface import InOrder, Launch, Memory, Stage, StageTime
from bitdance_edge.runtime.backends.onnxruntime import HostBuffer, copy_of_rows
from bitdance_edge.runtime.bundle.manifest import Bundle
from bitdance_edge.runtime.bundle.specs import StageSpec
from bitdance_edge.runtime.bundle.stage_names import LOOP_STAGES, StageName
from bitdance_edge.runtime.loop import BoundLoop, generate_tokens
from bitdance_edge.runtime.noise import Stream, normals
from bitdance_edge.runtime.request import Request
from bitdance_edge.runtime.sampler import Schedule
from bitdance_edge.runtime.streaming import token_request

RUN = (StageName.PROMPT, StageName.TOKENS, StageName.TIME)  # what is run to know what the others read
NOTED = (StageName.TOKENS, StageName.TIME, StageName.BACKBONE)

Tensors = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class TaughtImage:
    """One image to teach with.

    Attributes:
        request: for it, with its bits as ``prefix``.
        seed: of the noise that the head is given.
    """

    request: Request
    seed: int


def taught_images(
    bundle: Bundle, tokens: np.ndarray, subjects: Sequence[int | str], request: Request, seed: int
) -> list[TaughtImage]:
    """Pair the bits of images with their classes or prompts.

    Args:
        tokens: of -1 and +1, ``[images, h*w, C]``.
        subjects: a class or prompt an image, or one for all.
        request: with size, steps and guidance.

    Raises:
        CalibrationError: their numbers differ, or the bits are not those of whole images of this size.
    """
    if tokens.ndim == 2:
        tokens = tokens[None]
    shape = (bundle.model.size(request.size).tokens, bundle.model.bits)
    if tokens.ndim != 3 or tokens.shape[1:] != shape or not len(tokens):
        raise CalibrationError(
            f"the tokens have the shape {list(tokens.shape)}; images of this bundle are "
            f"[images, {shape[0]}, {shape[1]}]: make them with bitdance-edge tokenize, or name their --size"
        )
    if len(subjects) not in (1, len(tokens)):
        what = "classes" if bundle.text is None else "prompts"
        raise CalibrationError(f"{len(tokens)} images and {len(subjects)} {what} are given; give one an image")
    subjects = [subjects[i % len(subjects)] for i in range(len(tokens))]
    names = "classes" if bundle.text is None else "prompts"
    return [
        TaughtImage(replace(request, **{names: [subject]}, prefix=bits), seed + i)
        for i, (subject, bits) in enumerate(zip(subjects, tokens, strict=True))
    ]


class Teacher:
    """Says what each stage is given for an image."""

    def __init__(self, bundle: Bundle, graphs: Mapping[str, StageGraph], threads: int | None) -> None:
        """Open the small stages.

        Args:
            graphs: of the loop's stages.
        """
        self.bundle = bundle
        self.runs = {stage: SegmentRun(graphs[stage], whole(graphs[stage])[0], (), threads) for stage in RUN}

    def launches(self, image: TaughtImage) -> dict[str, list[Tensors]]:
        """Stage -> inputs of each launch, without the cache: of ``NOTED``, in the loop's order."""
        backend = _TaughtBackend(self)
        settings = image.request.resolve(self.bundle)
        request = token_request(settings)
        stages = {stage: backend.load(stage) for stage in LOOP_STAGES}
        loop = BoundLoop(backend, self.bundle, stages, request.shape)
        for _ in generate_tokens(loop, request, lambda patch, rows_apart: np.zeros((), np.float32)):
            pass
        return backend.noted

    def evaluations(self, image: TaughtImage, patches: Sequence[int], count: int) -> Iterator["Evaluations"]:
        """Yield what some patches of an image give modulation and head at ``count`` sampling times each."""
        model, settings = self.bundle.model, image.request.resolve(self.bundle)
        schedule = Schedule.of(settings.sampler, settings.steps, self.bundle.sampling.time_shift)
        for place, patch in enumerate(patches):
            # Staggered from patch to patch, so that together they cover all times.
            stride = max(1, (settings.steps + 1) // count)
            steps = [(place + i * stride) % (settings.steps + 1) for i in range(min(count, settings.steps + 1))]
            times = schedule.times[steps].astype(np.float32)
            (bits,) = settings.given.tokens[:, patch]
            noise = normals(image.seed, Stream.IMAGE, patch, len(steps), (model.tokens_per_step, model.bits))
            mixed = times[:, None, None] * bits + (1 - times[:, None, None]) * noise
            (embedded,) = (self.runs[StageName.TIME]({"times": times}, True)[name] for name in ("time_embeddings",))
            rows = 2 if settings.guidance > 1 else 1
            yield Evaluations(patch, steps, embedded, mixed.astype(np.float32), rows, settings.guidance)


@dataclass(frozen=True)
class Evaluations:
    """Evaluations of the head for one patch: ``time_embeddings`` ``[M, W]`` and noisy bits ``[M, P, C]``."""

    patch: int
    steps: list[int]
    time_embeddings: np.ndarray
    noisy: np.ndarray
    rows: int
    guidance: float

    def head_inputs(self, evaluation: int, modulations: Tensors) -> dict[str, np.ndarray]:
        """What the head reads in one of them; ``modulations`` are the outputs of that stage for all of them."""
        x = self.noisy[evaluation][None]
        return {
            "x": x,
            "coefficients": np.zeros(3, np.float32),
            "guidance": np.array([self.guidance], np.float32),
            "noise": np.zeros_like(x),
            "rows": np.zeros(self.rows, np.int64),
            **{name: values[evaluation] for name, values in modulations.items()},
        }


class _TaughtBackend:
    """Memory of the host, small stages that run, and others whose inputs are noted (a ``Backend``)."""

    name = "teacher"
    run_ahead = 0

    def __init__(self, teacher: Teacher) -> None:
        self.teacher = teacher
        self.noted: dict[str, list[Tensors]] = {stage: [] for stage in NOTED}

    def empty(self, shape: tuple[int, ...], dtype: str, *, ahead: bool = False) -> HostBuffer:
        return HostBuffer(np.zeros(shape, np.float32 if dtype == "bfloat16" else dtype))

    def load(self, stage: str) -> "_TaughtStage":
        return _TaughtStage(self, stage, self.teacher.bundle.stage(stage))

    def capture(self, launches: Sequence[Launch]) -> InOrder:
        return InOrder(launches)

    def overwrite(self, target: Memory, source: Memory, rows: np.ndarray) -> Launch:
        return copy_of_rows(target, source, rows)

    def second_lane(self) -> "_TaughtBackend":
        return self

    def trim(self, stages: Iterable[Stage]) -> None:
        """There is nothing to give back."""

    def current(self) -> AbstractContextManager[None]:
        return nullcontext()

    def close(self) -> None:
        """There is nothing to free."""


class _TaughtStage:
    def __init__(self, backend: _TaughtBackend, name: str, spec: StageSpec) -> None:
        self.backend, self.name, self.spec, self.time = backend, name, spec, StageTime()

    def bind(self, buffers: Mapping[str, Memory]) -> Launch:
        memory = cast(Mapping[str, HostBuffer], buffers)

        def launch() -> None:
            if self.name not in (*RUN, *NOTED):
                return
            inputs = {
                tensor.name: memory[tensor.name].read()
                for tensor in self.spec.inputs
                if not tensor.name.startswith(CACHE_INPUT)
            }
            if self.name in NOTED:
                self.backend.noted[self.name].append(inputs)
            if self.name in RUN:
                made = self.backend.teacher.runs[self.name](inputs, True)
                for tensor in self.spec.outputs:
                    memory[tensor.name].write(made[tensor.name])

        return launch

    def close(self) -> None:
        """There is nothing to free."""
