"""What the server asks of a worker, and what it hears back: plain data, sent between processes."""

from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np

from bitdance_edge.runtime import GeneratedImage, Request, Size


@dataclass(frozen=True, kw_only=True)
class Generation:
    """Images of one prompt, checked; image i has ``seeds[i]``."""

    model: str
    prompt: str
    negative_prompt: str | None
    seeds: tuple[int, ...]
    steps: int
    guidance: float
    guidance_schedule: str
    sampler: str
    size: Size
    prefix: np.ndarray | None  # [K, C] of -1 and +1
    previews: frozenset[int]  # patches after which to show what is there so far
    fast_previews: bool  # by the linear approximation of the decoder
    prompt_tokens: int = 0  # ids of the prompt, known once it has been checked

    @property
    def images(self) -> int:
        return len(self.seeds)

    @property
    def shape(self) -> Hashable:
        """Generations of the same shape can run in one batch."""
        given = 0 if self.prefix is None else len(self.prefix)
        sampling = (self.steps, self.guidance, self.guidance_schedule, self.sampler)
        return (self.model, self.negative_prompt, sampling, self.size, given)


@dataclass(frozen=True, kw_only=True)
class Tokenization:
    """One image to tokens and back; pixels uint8 ``[H, W, 3]``."""

    model: str
    pixels: np.ndarray

    images = 1
    shape = None  # runs alone


Work = Generation | Tokenization


@dataclass(frozen=True, kw_only=True)
class Generate:
    """To a worker: run this request; ``previews`` are the patches to show of each image, ``fast`` how."""

    batch: int
    model: str
    request: Request
    previews: tuple[frozenset[int], ...]
    fast: tuple[bool, ...]


@dataclass(frozen=True, kw_only=True)
class Tokenize:
    """To a worker: pixels uint8 ``[H, W, 3]`` to tokens and back."""

    batch: int
    model: str
    pixels: np.ndarray


@dataclass(frozen=True)
class Cancel:
    """To a worker: end this batch at its next patch."""

    batch: int


@dataclass(frozen=True)
class Stop:
    """To a worker: end, at the next patch of what runs."""


@dataclass(frozen=True, kw_only=True)
class PatchDone:
    """From a worker: images ``first`` to ``first + count - 1`` have ``patch`` patches; some can be seen."""

    batch: int
    first: int
    count: int
    patch: int
    patches: int
    previews: dict[int, np.ndarray]  # image -> uint8 [H, W, 3]


@dataclass(frozen=True, kw_only=True)
class ImageDone:
    """From a worker: image ``index`` of the batch."""

    batch: int
    index: int
    image: GeneratedImage


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """From a worker: int8 ``[h*w, C]`` in generation order, and what the decoder makes of them, uint8 ``[H, W, 3]``."""

    batch: int
    tokens: np.ndarray
    pixels: np.ndarray


@dataclass(frozen=True)
class StageReport:
    launches: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class BatchDone:
    """From a worker: it is free again; what each stage took, and why it failed where it did."""

    batch: int
    seconds: float
    stages: dict[str, StageReport]
    failure: tuple[str, str] | None = None  # code, message


@dataclass(frozen=True)
class Ready:
    """From a worker: each model has made its warm-up image."""

    backend: str


@dataclass(frozen=True)
class NotReady:
    """From a worker: it cannot start, and why; it has ended."""

    message: str


Order = Generate | Tokenize | Cancel | Stop
Report = PatchDone | ImageDone | Tokens | BatchDone | Ready | NotReady
