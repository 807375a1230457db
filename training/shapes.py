"""Captioned pictures of colored shapes, drawn here: one shape, or two that stand left, right, above or below.

Held out are all captions of some pairs of shapes: no wording and no arrangement of such a pair is trained on.
Knows numpy, nothing of torch or of how captions become token ids.
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
# Corners, and their inner radius as a share of the outer: a regular polygon has cos(pi / corners), a star less.
SHAPES: dict[str, tuple[int, float]] = {
    "circle": (0, 1.0),
    "square": (4, np.cos(np.pi / 4)),
    "triangle": (3, np.cos(np.pi / 3)),
    "star": (5, 0.42),
}
# Outer radius of each shape for a radius of 1: areas look alike, and the widest stays inside half of a picture.
OUTER = {"circle": 1.0, "square": 1.25, "triangle": 1.3, "star": 1.3}
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
WANDER = 0.15  # a shape's distance from the middle of its place, where there is room
SHARE_OF_SINGLES = 0.15
HELD_OUT_SHARE = 5  # one pair of shapes in so many
BACKGROUND = (210, 245)
DRAWN_AT_ONCE = 512


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
    """What a picture shows: one thing, or two in a relation, the first of them named first."""

    things: tuple[Thing, ...]
    relation: str | None = None

    @property
    def caption(self) -> str:
        return f" {self.relation} ".join(thing.phrase for thing in self.things)

    @property
    def places(self) -> tuple[str, ...]:
        """Where each thing stands, as names of ``PLACES``."""
        return ("whole",) if self.relation is None else RELATIONS[self.relation]

    @property
    def held_out(self) -> bool:
        """Whether this pair of things is kept from training, in whatever order and relation."""
        pair = "|".join(sorted(map(str, self.things)))
        return self.relation is not None and zlib.crc32(pair.encode()) % HELD_OUT_SHARE == 0


def all_scenes() -> tuple[Scene, ...]:
    """Every scene that captions can say: single things first, then every ordered pair of two different things."""
    things = [Thing(color, shape) for color in COLORS for shape in SHAPES]
    pairs = [Scene(pair, relation) for pair in permutations(things, 2) for relation in RELATIONS]
    return (*(Scene((thing,)) for thing in things), *pairs)


def draw_scenes(scenes: Sequence[Scene], count: int, seed: int) -> NDArray[np.int64]:
    """``count`` indices of ``scenes``: a fixed share of single things, the rest of pairs, evenly drawn."""
    generator = np.random.default_rng(seed)
    single = np.array([len(scene.things) == 1 for scene in scenes])
    chance = np.where(single, SHARE_OF_SINGLES / max(1, single.sum()), (1 - SHARE_OF_SINGLES) / max(1, (~single).sum()))
    return generator.choice(len(scenes), size=count, p=chance / chance.sum())


def render(scenes: Sequence[Scene], size: int, seed: int | tuple[int, ...]) -> NDArray[np.uint8]:
    """Antialiased pictures ``[N, size, size, 3]`` of the scenes, places, sizes and shades varied by ``seed``.

    The background is light, of one tint, a little brighter towards one side.
    """
    generator = np.random.default_rng(seed)
    parts = [scenes[first : first + DRAWN_AT_ONCE] for first in range(0, len(scenes), DRAWN_AT_ONCE)]
    return np.concatenate([_render(part, size, generator) for part in parts])


def _render(scenes: Sequence[Scene], size: int, generator: np.random.Generator) -> NDArray[np.uint8]:
    pictures = _backgrounds(len(scenes), size, generator)
    for position in range(2):
        rows = [row for row, scene in enumerate(scenes) if len(scene.things) > position]
        if not rows:
            continue
        things = [scenes[row].things[position] for row in rows]
        radius = generator.uniform(*RADIUS, len(rows)) * size
        outer = radius * np.array([OUTER[thing.shape] for thing in things])
        places = np.array([PLACES[scenes[row].places[position]] for row in rows]) * size
        centre = _centres(places, outer, size, generator)
        covered = np.empty((len(rows), size, size), np.float32)
        for shape in SHAPES:
            of_shape = np.flatnonzero([thing.shape == shape for thing in things])
            covered[of_shape] = _coverage(shape, centre[of_shape], outer[of_shape], size)
        color = np.array([COLORS[thing.color] for thing in things]) + generator.normal(0, 5, (len(rows), 3))
        covered = covered[..., None]
        pictures[rows] = pictures[rows] * (1 - covered) + color[:, None, None].clip(0, 255) * covered
    return pictures.round().clip(0, 255).astype(np.uint8)


def _backgrounds(count: int, size: int, generator: np.random.Generator) -> NDArray[np.float32]:
    """Light tints ``[count, size, size, 3]`` with a slight gradient."""
    tint = generator.uniform(*BACKGROUND, (count, 1, 1, 1)) + generator.normal(0, 3, (count, 1, 1, 3))
    across = np.linspace(-1, 1, size)
    right, down = generator.uniform(-5, 5, (2, count, 1, 1, 1))
    return (tint + right * across[:, None] + down * across[:, None, None]).astype(np.float32)


def _centres(
    places: NDArray[np.float64], outer: NDArray[np.float64], size: int, generator: np.random.Generator
) -> NDArray[np.float64]:
    """Where things stand, ``[N, 2]`` as (x, y) in pixels: near the middle of their places and wholly inside."""
    low, high = places[:, :2], places[:, 2:]
    room = np.minimum((high - low) / 2 - outer[:, None] - 0.5, WANDER * size)
    return (low + high) / 2 + generator.uniform(-1, 1, (len(places), 2)) * room


def _coverage(shape: str, centre: NDArray[np.float64], outer: NDArray[np.float64], size: int) -> NDArray[np.float32]:
    """Share of each pixel that the shape covers, ``[N, size, size]``, from the distance to its edge.

    A polygon or star is folded into the half sector between an outer corner and the inner one beside it, where its edge
    is one straight line.
    """
    pixel = np.arange(size) + 0.5
    x = pixel[None, None, :] - centre[:, 0, None, None]
    y = pixel[None, :, None] - centre[:, 1, None, None]
    distance = np.hypot(x, y)
    outer = outer[:, None, None]
    corners, share = SHAPES[shape]
    if corners == 0:
        return (outer - distance + 0.5).clip(0, 1).astype(np.float32)
    sector = np.pi / corners
    upright = np.arctan2(x, -y) + (sector if shape == "square" else 0.0)  # from the top; a square rests on its side
    folded = np.abs((upright + sector) % (2 * sector) - sector)
    along, beside = distance * np.cos(folded), distance * np.sin(folded)
    inner = share * outer
    edge_x, edge_y = inner * np.cos(sector) - outer, inner * np.sin(sector)
    inside = (along - outer) * -edge_y + beside * edge_x
    return (inside / np.hypot(edge_x, edge_y) + 0.5).clip(0, 1).astype(np.float32)
