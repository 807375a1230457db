"""Captioned pictures of colored shapes, drawn here: one shape, or two side by side or one above the other.

All captions of some pairs of shapes are held out: training sees no wording and no arrangement of such a pair.
Knows numpy only: neither torch nor how captions become token ids.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (220, 35, 40),
    "orange": (255, 140, 0),
    "yellow": (245, 220, 20),
    "green": (25, 155, 60),
    "cyan": (40, 200, 220),
    "blue": (40, 70, 220),
    "purple": (140, 50, 180),
    "black": (25, 25, 25),
}
# Corners, and the inner radius as a share of the outer: cos(pi / corners) for a regular polygon, less for a star.
SHAPES: dict[str, tuple[int, float]] = {
    "circle": (0, 1.0),
    "square": (4, np.cos(np.pi / 4)),
    "triangle": (3, np.cos(np.pi / 3)),
    "star": (5, 0.42),
}
# Outer radius of each shape at radius 1: areas look alike, and the widest fits into half of a picture.
OUTER_RADIUS = {"circle": 1.0, "square": 1.25, "triangle": 1.3, "star": 1.3}
RELATIONS: dict[str, tuple[str, str]] = {
    "to the left of": ("left", "right"),
    "to the right of": ("right", "left"),
    "above": ("top", "bottom"),
    "below": ("bottom", "top"),
}
# Places as shares of the picture: left, top, right, bottom.
PLACES: dict[str, tuple[float, float, float, float]] = {
    "whole": (0, 0, 1, 1),
    "left": (0, 0, 0.5, 1),
    "right": (0.5, 0, 1, 1),
    "top": (0, 0, 1, 0.5),
    "bottom": (0, 0.5, 1, 1),
}
RADIUS = (0.135, 0.185)  # shares of the picture's side
JITTER = 0.15  # largest distance of a shape from the middle of its place, as a share of the picture's side
SINGLES_SHARE = 0.15
HELD_OUT_EVERY = 5  # one pair of things in 5 is held out
BACKGROUND = (210, 245)
RENDER_BATCH = 512


@dataclass(frozen=True)
class Thing:
    color: str
    shape: str

    def __str__(self) -> str:
        return f"{self.color} {self.shape}"

    @property
    def phrase(self) -> str:
        return f"{'an' if self.color[0] in 'aeiou' else 'a'} {self}"


@dataclass(frozen=True)
class Scene:
    """The content of a picture: one thing, or two in a relation, in the order of the caption."""

    things: tuple[Thing, ...]
    relation: str | None = None

    @property
    def caption(self) -> str:
        return f" {self.relation} ".join(thing.phrase for thing in self.things)

    @property
    def places(self) -> tuple[str, ...]:
        """The place of each thing, a key of ``PLACES``."""
        return ("whole",) if self.relation is None else RELATIONS[self.relation]

    @property
    def held_out(self) -> bool:
        """Whether this pair of things is held out, which is the same for every order and relation."""
        pair = "|".join(sorted(map(str, self.things)))
        return self.relation is not None and zlib.crc32(pair.encode()) % HELD_OUT_EVERY == 0


def all_scenes() -> tuple[Scene, ...]:
    """Return every scene: single things first, then each ordered pair of different things in each relation."""
    things = [Thing(color, shape) for color in COLORS for shape in SHAPES]
    pairs = [Scene(pair, relation) for pair in permutations(things, 2) for relation in RELATIONS]
    return (*(Scene((thing,)) for thing in things), *pairs)


def draw_scenes(scenes: Sequence[Scene], count: int, seed: int) -> NDArray[np.int64]:
    """Draw ``count`` indices of ``scenes``: ``SINGLES_SHARE`` are single things, the others pairs, each uniformly."""
    generator = np.random.default_rng(seed)
    single = np.array([len(scene.things) == 1 for scene in scenes])
    weights = np.where(single, SINGLES_SHARE / max(1, single.sum()), (1 - SINGLES_SHARE) / max(1, (~single).sum()))
    return generator.choice(len(scenes), size=count, p=weights / weights.sum())


def render(scenes: Sequence[Scene], size: int, seed: int | tuple[int, ...]) -> NDArray[np.uint8]:
    """Draw antialiased pictures uint8 ``[N, size, size, 3]`` of the scenes; ``seed`` varies places, sizes and shades.

    The background is a light tint, slightly brighter towards one side.
    """
    generator = np.random.default_rng(seed)
    parts = [scenes[first : first + RENDER_BATCH] for first in range(0, len(scenes), RENDER_BATCH)]
    return np.concatenate([_render(part, size, generator) for part in parts])


def _render(scenes: Sequence[Scene], size: int, generator: np.random.Generator) -> NDArray[np.uint8]:
    pictures = _backgrounds(len(scenes), size, generator)
    for position in range(2):
        rows = [row for row, scene in enumerate(scenes) if len(scene.things) > position]
        if not rows:
            continue
        things = [scenes[row].things[position] for row in rows]
        radius = generator.uniform(*RADIUS, len(rows)) * size
        outer = radius * np.array([OUTER_RADIUS[thing.shape] for thing in things])
        places = np.array([PLACES[scenes[row].places[position]] for row in rows]) * size
        center = _centers(places, outer, size, generator)
        covered = np.empty((len(rows), size, size), np.float32)
        for shape in SHAPES:
            of_shape = np.flatnonzero([thing.shape == shape for thing in things])
            covered[of_shape] = _coverage(shape, center[of_shape], outer[of_shape], size)
        color = np.array([COLORS[thing.color] for thing in things]) + generator.normal(0, 5, (len(rows), 3))
        covered = covered[..., None]
        pictures[rows] = pictures[rows] * (1 - covered) + color[:, None, None].clip(0, 255) * covered
    return pictures.round().clip(0, 255).astype(np.uint8)


def _backgrounds(count: int, size: int, generator: np.random.Generator) -> NDArray[np.float32]:
    """Draw light tints ``[count, size, size, 3]`` with a slight gradient."""
    tint = generator.uniform(*BACKGROUND, (count, 1, 1, 1)) + generator.normal(0, 3, (count, 1, 1, 3))
    across = np.linspace(-1, 1, size)
    right, down = generator.uniform(-5, 5, (2, count, 1, 1, 1))
    return (tint + right * across[:, None] + down * across[:, None, None]).astype(np.float32)


def _centers(
    places: NDArray[np.float64], outer: NDArray[np.float64], size: int, generator: np.random.Generator
) -> NDArray[np.float64]:
    """Draw the centers of things, ``[N, 2]`` as (x, y) in pixels: near the middle of their places, entirely inside."""
    low, high = places[:, :2], places[:, 2:]
    room = np.minimum((high - low) / 2 - outer[:, None] - 0.5, JITTER * size)
    return (low + high) / 2 + generator.uniform(-1, 1, (len(places), 2)) * room


def _coverage(shape: str, center: NDArray[np.float64], outer: NDArray[np.float64], size: int) -> NDArray[np.float32]:
    """Return the share of each pixel that the shape covers, ``[N, size, size]``, from the distance to its edge.

    A polygon or star is folded into the half sector between an outer corner and the next inner one, where its edge is
    one straight line.
    """
    pixel = np.arange(size) + 0.5
    x = pixel[None, None, :] - center[:, 0, None, None]
    y = pixel[None, :, None] - center[:, 1, None, None]
    distance = np.hypot(x, y)
    outer = outer[:, None, None]
    corners, share = SHAPES[shape]
    if corners == 0:
        return (outer - distance + 0.5).clip(0, 1).astype(np.float32)
    sector = np.pi / corners
    upright = np.arctan2(x, -y) + (sector if shape == "square" else 0.0)  # from the top; a square stands on a side
    folded = np.abs((upright + sector) % (2 * sector) - sector)
    along, across = distance * np.cos(folded), distance * np.sin(folded)
    inner = share * outer
    edge_x, edge_y = inner * np.cos(sector) - outer, inner * np.sin(sector)
    inside = (along - outer) * -edge_y + across * edge_x
    return (inside / np.hypot(edge_x, edge_y) + 0.5).clip(0, 1).astype(np.float32)
