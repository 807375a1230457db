"""The messages between the server and a worker process: work and orders one way, reports the other. Plain data."""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from bitdance_edge.runtime import GeneratedImage, Request, Size
from bitdance_edge.runtime.backends.interface import StageTime


@dataclass(frozen=True, kw_only=True)
class Change:
    """What a request changes of an image, as the fields of the runtime's request by these names."""

    init: np.ndarray  # uint8 [H, W, 3], or [h*w, C] of -1 and +1
    mask: np.ndarray | None  # bool [H, W]
    strength: float | list[float] | None
    candidates: int
    blend: bool


@dataclass(frozen=True, kw_only=True)
class Generation:
    """A checked request for images of one prompt; image i uses ``seeds[i]``."""

    model: str
    prompt: str
    negative_prompt: str | None
    seeds: tuple[int, ...]
    steps: int
    guidance: float
    guidance_schedule: str
    sampler: str
    window: int | Literal["auto"]
    size: Size
    prefix: np.ndarray | None  # [K, C] of -1 and +1
    change: Change | None
    previews: frozenset[int]  # patches after which to send a preview
    fast_previews: bool  # previews by the linear approximation of the decoder
    prompt_tokens: int = 0  # number of token ids, known once the prompt has been checked

    kind: ClassVar[str] = "generation"

    @property
    def images(self) -> int:
        return len(self.seeds)

    @property
    def shape(self) -> Hashable:
        """Generations of the same shape can run in one batch; one that changes an image runs alone."""
        if self.change is not None:
            return None
        given = 0 if self.prefix is None else len(self.prefix)
        sampling = (self.steps, self.guidance, self.guidance_schedule, self.sampler, self.window)
        return (self.model, self.negative_prompt, sampling, self.size, given)


@dataclass(frozen=True, kw_only=True)
class Tokenization:
    """A checked request to turn one image, uint8 ``[H, W, 3]``, into tokens and back."""

    model: str
    pixels: np.ndarray

    kind: ClassVar[str] = "tokenization"
    images: ClassVar[int] = 1
    shape: ClassVar[None] = None  # always a batch of its own


Work = Generation | Tokenization


@dataclass(frozen=True, kw_only=True)
class Generate:
    """To a worker: run this request. ``previews[i]`` are the patches after which to show image i, ``fast[i]`` how."""

    batch: int
    model: str
    request: Request
    previews: tuple[frozenset[int], ...]
    fast: tuple[bool, ...]


@dataclass(frozen=True, kw_only=True)
class Tokenize:
    """To a worker: turn pixels, uint8 ``[H, W, 3]``, into tokens and back."""

    batch: int
    model: str
    pixels: np.ndarray


@dataclass(frozen=True)
class Cancel:
    """To a worker: stop this batch at its next patch."""

    batch: int


@dataclass(frozen=True)
class Stop:
    """To a worker: exit, at the next patch of the batch that runs."""


@dataclass(frozen=True, kw_only=True)
class PatchReport:
    """From a worker: images ``first`` to ``first + count - 1`` have ``patch`` patches; some have a preview."""

    batch: int
    first: int
    count: int
    patch: int
    patches: int
    previews: dict[int, np.ndarray]  # image -> uint8 [H, W, 3]


@dataclass(frozen=True, kw_only=True)
class ImageReport:
    """From a worker: image ``index`` of the batch is finished."""

    batch: int
    index: int
    image: GeneratedImage


@dataclass(frozen=True, kw_only=True)
class TokensReport:
    """From a worker: tokens, int8 ``[h*w, C]`` in generation order, and their decoded pixels, uint8 ``[H, W, 3]``."""

    batch: int
    tokens: np.ndarray
    pixels: np.ndarray


@dataclass(frozen=True, kw_only=True)
class BatchReport:
    """From a worker: the batch has ended and the worker is free; the time of each stage, and the failure if any."""

    batch: int
    seconds: float
    stages: dict[str, StageTime]
    failure: tuple[str, str] | None = None  # code, message


@dataclass(frozen=True)
class Ready:
    """From a worker: every model has made its warm-up image."""

    backend: str


@dataclass(frozen=True)
class NotReady:
    """From a worker: why it cannot start; the process has ended."""

    message: str


Order = Generate | Tokenize | Cancel | Stop
Report = PatchReport | ImageReport | TokensReport | BatchReport | Ready | NotReady
