"""What a stream of a request yields."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from bitdance_edge.runtime.backends.interface import Pending
from bitdance_edge.runtime.image import GeneratedImage


@dataclass(frozen=True, kw_only=True)
class PatchDone:
    """A patch of every image of a batch is sampled: ``patch`` counts from 1; ``tokens`` int8 ``[B, P, C]``."""

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
    """An image of the request is complete."""

    image: GeneratedImage


Event = PatchDone | Preview | ImageDone


@dataclass(frozen=True)
class PendingEvents:
    """Pixels that are being decoded, and the events to make of them."""

    pixels: Pending
    events: Callable[[np.ndarray], Iterator[Event]]

    def done(self) -> bool:
        """Whether ``wait`` would return at once."""
        return self.pixels.done()

    def wait(self) -> Iterator[Event]:
        """The events, once the pixels are decoded."""
        return self.events(self.pixels.wait())
