"""What can be seen of an image before it is complete.

A full preview is the decoder over all tokens, the missing ones zero. It costs what decoding the image costs, and is an
approximation too: the decoder's group norms are statistics of the whole image, so no part can be decoded by itself.

A fast preview is a linear map, fitted to the decoder when the bundle was exported: from the bits of a token and its
eight neighbours to the token's square of pixels. It depends on nothing else, so a new patch changes only what is near.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np

from bitdance_edge.runtime.backends.interface import Pending
from bitdance_edge.runtime.bundle.specs import ImageSize
from bitdance_edge.runtime.errors import BundleError

UNSEEN = 128  # gray of the pixels that are not drawn yet
KINDS = ("full", "fast")
REACH = 1  # tokens to each side that a token's pixels are made from
WINDOW = 2 * REACH + 1
RIDGE = 1e-3  # of the fit, per sample: keeps it finite where bits always agree


def full_preview(
    tokens: np.ndarray, size: ImageSize, patch_side: int, decode: Callable[[np.ndarray], Pending]
) -> Pending:
    """Start decoding the first tokens ``[B, K, C]`` of images to what can be seen of them, uint8 ``[B, H, W, 3]``.

    Args:
        decode: what starts decoding all tokens, float32 ``[B, h*w, C]``.
    """
    images, known, bits = tokens.shape
    padded = np.zeros((images, size.tokens, bits), np.float32)
    padded[:, :known] = tokens
    return GrayWhereUndrawn(decode(padded), undrawn(size, known, patch_side))


@dataclass(frozen=True)
class GrayWhereUndrawn:
    """Pixels that are being decoded, gray where ``missing`` bool ``[H, W]`` says that nothing is drawn yet."""

    decoded: Pending
    missing: np.ndarray

    def done(self) -> bool:
        return self.decoded.done()

    def wait(self) -> np.ndarray:
        pixels = self.decoded.wait()
        pixels[:, self.missing] = UNSEEN
        return pixels


@dataclass(frozen=True)
class PreviewMap:
    """``weights`` float32 ``[9 * C + 1, p * p * 3]``: bits of the window, and 1, to the pixels of its middle token."""

    weights: np.ndarray

    @classmethod
    def load(cls, path: Path, bits: int, pixels_per_token: int) -> "PreviewMap":
        """Read a map from a file.

        Raises:
            BundleError: the file is not a map of this model.
        """
        try:
            # Mapped: what the header says is compared before anything of that size is allocated.
            with np.errstate(over="ignore"):
                weights = np.load(path, mmap_mode="r", allow_pickle=False)
        except Exception as error:  # numpy reads the header as Python, which can fail in many ways
            raise BundleError(f"{path} cannot be read ({error}); copy or export the bundle again") from None
        shape = (WINDOW**2 * bits + 1, pixels_per_token**2 * 3)
        if not isinstance(weights, np.ndarray) or weights.dtype.kind != "f":
            raise BundleError(f"{path} is not one array of floating-point numbers; export the bundle again")
        if weights.shape != shape:
            raise BundleError(
                f"{path} has shape {list(weights.shape)}, this model needs {list(shape)}; export it again"
            )
        if not np.isfinite(weights).all():
            raise BundleError(f"{path} holds numbers that are not finite; export the bundle again")
        return cls(weights.astype(np.float32))

    @classmethod
    def fitted(cls, tokens: np.ndarray, pixels: np.ndarray, size: ImageSize, patch_side: int) -> "PreviewMap":
        """Fit the map that is nearest, by squared error, to what the decoder makes of complete images.

        Args:
            tokens: ``[N, h*w, C]`` in generation order; ``pixels`` uint8 ``[N, H, W, 3]`` is what they decode to.
        """
        place = places(size, patch_side)
        grid = np.zeros((len(tokens), size.tokens, tokens.shape[2]), np.float32)
        grid[:, place] = tokens
        seen = _windows(_framed(grid.reshape(len(tokens), size.grid_height, size.grid_width, -1)))
        side = size.height // size.grid_height
        wanted = pixels.reshape(len(pixels), size.grid_height, side, size.grid_width, side, 3)
        wanted = wanted.transpose(0, 1, 3, 2, 4, 5).reshape(-1, side * side * 3)
        given = np.concatenate([seen, np.ones_like(seen[..., :1])], axis=-1).reshape(len(wanted), -1).astype(np.float64)
        gram = given.T @ given + RIDGE * len(given) * np.eye(given.shape[1])
        return cls(np.linalg.solve(gram, given.T @ wanted).astype(np.float32))

    def __call__(self, framed: np.ndarray) -> np.ndarray:
        """Bits ``[B, r + 2, c + 2, C]`` of tokens and those around them to pixels uint8 ``[B, r * p, c * p, 3]``."""
        seen = _windows(framed)
        images, rows, columns = seen.shape[:3]
        side = int((self.weights.shape[1] // 3) ** 0.5)
        pixels = (seen @ self.weights[:-1] + self.weights[-1]).clip(0, 255).astype(np.uint8)
        squares = pixels.reshape(images, rows, columns, side, side, 3)
        return squares.transpose(0, 1, 3, 2, 4, 5).reshape(images, rows * side, columns * side, 3)


class PreviewCanvas:
    """Fast previews of a batch of images; each patch redraws itself and the edge of what it touches.

    ``pixels`` uint8 ``[B, H, W, 3]`` is what is drawn so far, gray where nothing is.
    """

    def __init__(self, drawn_by: PreviewMap, images: int, bits: int, size: ImageSize, patch_side: int) -> None:
        self.drawn_by, self.places = drawn_by, places(size, patch_side)
        self.side = size.height // size.grid_height
        self.bits = _framed(np.zeros((images, size.grid_height, size.grid_width, bits), np.float32))
        self.drawn = np.zeros((size.grid_height, size.grid_width), bool)
        self.pixels = np.full((images, size.height, size.width, 3), UNSEEN, np.uint8)
        self.known = 0

    def add(self, tokens: np.ndarray) -> None:
        """Draw the next tokens ``[B, K, C]`` of all images, in generation order."""
        rows, columns = np.divmod(self.places[self.known : self.known + tokens.shape[1]], self.drawn.shape[1])
        self.known += tokens.shape[1]
        self.bits[:, rows + REACH, columns + REACH] = tokens
        self.drawn[rows, columns] = True
        top, left = max(0, rows.min() - REACH), max(0, columns.min() - REACH)
        bottom, right = (
            min(end, at.max() + 1 + REACH) for end, at in zip(self.drawn.shape, (rows, columns), strict=True)
        )
        drawn = self.drawn_by(self.bits[:, top : bottom + 2 * REACH, left : right + 2 * REACH])
        there = self.drawn[top:bottom, left:right].repeat(self.side, 0).repeat(self.side, 1)
        part = self.pixels[:, top * self.side : bottom * self.side, left * self.side : right * self.side]
        part[:, there] = drawn[:, there]


class PreviewBudget:
    """Keeps the time of previews below a share of the time since it was made, judging by what the last one took.

    Args:
        expected: seconds that the first one is expected to take.
    """

    def __init__(self, share: float, expected: float) -> None:
        self.share, self.expected, self.spent, self.started = share, expected, 0.0, perf_counter()

    def allows(self) -> bool:
        """Whether another one stays within the share."""
        elapsed = perf_counter() - self.started
        return self.spent + self.expected <= self.share * (elapsed + self.expected)

    @contextmanager
    def paying(self) -> Iterator[None]:
        """Count the time inside the block as spent on a preview."""
        started = perf_counter()
        yield
        self.expected = perf_counter() - started
        self.spent += self.expected


def _framed(grid: np.ndarray) -> np.ndarray:
    """``[B, h, w, C]`` with zeros around it: no bits, as where nothing is drawn yet."""
    return np.pad(grid, ((0, 0), (REACH, REACH), (REACH, REACH), (0, 0)))


def _windows(framed: np.ndarray) -> np.ndarray:
    """``[B, r + 2, c + 2, C]`` to the window around each token that has one, ``[B, r, c, C * 9]``."""
    found = np.lib.stride_tricks.sliding_window_view(framed, (WINDOW, WINDOW), axis=(1, 2))
    return found.reshape(*found.shape[:3], -1)


def places(size: ImageSize, patch_side: int) -> np.ndarray:
    """Where each token of the generation order stands in raster order, int64 ``[h*w]``."""
    order = sequence_to_grid(np.arange(size.tokens), size.grid_height, size.grid_width, patch_side)
    return np.argsort(order.ravel())


def undrawn(size: ImageSize, known: int, patch_side: int) -> np.ndarray:
    """Which pixels the first ``known`` tokens do not draw, bool ``[H, W]``."""
    missing = np.ones(size.tokens, bool)
    missing[:known] = False
    cells = sequence_to_grid(missing, size.grid_height, size.grid_width, patch_side)
    return cells.repeat(size.height // size.grid_height, 0).repeat(size.width // size.grid_width, 1)


def sequence_to_grid(values: np.ndarray, height: int, width: int, patch_side: int) -> np.ndarray:
    """One value a token, ``[h*w]`` in generation order, to ``[h, w]``."""
    patches = values.reshape(height // patch_side, width // patch_side, patch_side, patch_side)
    return patches.transpose(0, 2, 1, 3).reshape(height, width)
