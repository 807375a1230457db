"""The size of an image in pixels: WIDTHxHEIGHT as text and keywords in Python, so that a swap is noticed."""

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from bitdance_edge.runtime.bundle.limits import Within
from bitdance_edge.runtime.errors import RequestError
from bitdance_edge.runtime.values import shown

MOST = 65_536  # pixels of a side
Side = Annotated[int, Within(1, MOST)]


@dataclass(frozen=True, kw_only=True)
class Size:
    width: Side
    height: Side

    @classmethod
    def parse(cls, text: str) -> "Size":
        """Read ``WIDTHxHEIGHT``.

        Raises:
            RequestError: it is no text, or not a size.
        """
        if not isinstance(text, str):
            raise RequestError(f"size is {shown(text)}; write WIDTHxHEIGHT in pixels, for example 1280x768")
        width, separator, height = text.strip().lower().partition("x")
        sides = [
            side for side in (width, height) if side.isascii() and side.isdecimal() and len(side) <= len(str(MOST))
        ]
        if not separator or len(sides) != 2 or not all(1 <= int(side) <= MOST for side in sides):
            raise RequestError(f"{text[:40]!r} is not a size; write WIDTHxHEIGHT in pixels, for example 1280x768")
        return cls(width=int(width), height=int(height))

    @classmethod
    def of(cls, pixels: np.ndarray) -> "Size":
        """The size of pixels ``[..., H, W, 3]``."""
        return cls(width=pixels.shape[-2], height=pixels.shape[-3])

    @property
    def area(self) -> int:
        """Pixels of the image."""
        return self.width * self.height

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"
