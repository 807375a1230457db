"""Reads the color and the shape of the thing at a place of a picture, to score pictures of captions.

Plain image processing, fitted on clean drawings only: the thing is what differs from the color of the border, its color
the nearest of the palette, its shape the nearest mean outline. Knows no model.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from bitdance_edge.training.shapes import COLORS, PLACES, SHAPES, Scene, Thing, render

OUTLINE = 16  # side of an outline, in cells
FIT_DRAWINGS = 128  # of each shape
MAX_OUTLINE_DISTANCE = 0.12  # to the nearest mean, root mean square of covered shares; clean drawings have 0.03
MAX_DISTANCE_RATIO = 0.7  # of the nearest mean's distance to the second nearest's; clean drawings have 0.2
MIN_CONTRAST = 40.0  # of a thing and the background, as a distance in RGB
MIN_AREA = 40  # pixels of a thing in a picture of 64x64
MAX_SECOND_AREA = 0.25  # of a second thing, as a share of the first's; above it the place is unreadable
MAX_COLOR_DISTANCE = 90.0  # to the palette, in RGB


@dataclass(frozen=True)
class Seen:
    """Color and shape read at a place; None where it is not clearly one of ours."""

    color: str | None
    shape: str | None


@dataclass(frozen=True)
class ShapeReader:
    """Compares what it finds at a place with the palette and with the mean outlines of clean drawings."""

    outlines: NDArray[np.float32]  # [shapes, OUTLINE, OUTLINE], covered shares

    @classmethod
    def fitted(cls, size: int, seed: int = 0) -> "ShapeReader":
        """Fit a reader of pictures of ``size`` x ``size`` pixels."""
        outlines = []
        for number, shape in enumerate(SHAPES):
            scenes = [Scene((Thing(color, shape),)) for color in COLORS] * (FIT_DRAWINGS // len(COLORS))
            found = [_find(picture, "whole") for picture in render(scenes, size, (seed, number))]
            outlines.append(np.mean([one[1] for one in found if one is not None], axis=0))
        return cls(np.stack(outlines))

    def read(self, picture: NDArray[np.uint8], place: str) -> Seen:
        """Read the thing at ``place``, a key of ``PLACES``, of a picture uint8 ``[H, W, 3]``."""
        found = _find(picture, place)
        if found is None:
            return Seen(None, None)
        color, outline = found
        distances = {name: float(np.linalg.norm(color - np.array(known))) for name, known in COLORS.items()}
        nearest_color = min(distances, key=distances.__getitem__)
        differences = np.sqrt(np.square(self.outlines - outline).mean(axis=(1, 2)))
        nearest, second = np.argsort(differences)[:2]
        clear = differences[nearest] <= min(MAX_OUTLINE_DISTANCE, MAX_DISTANCE_RATIO * differences[second])
        return Seen(
            nearest_color if distances[nearest_color] <= MAX_COLOR_DISTANCE else None,
            list(SHAPES)[nearest] if clear else None,
        )


def _find(picture: NDArray[np.uint8], place: str) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
    """Find color ``[3]`` and outline ``[OUTLINE, OUTLINE]`` of the thing at a place; None unless there is one."""
    pixels = picture.astype(np.float32)
    size = len(pixels)
    border = np.concatenate([pixels[[0, -1]].reshape(-1, 3), pixels[:, [0, -1]].reshape(-1, 3)])
    left, top, right, bottom = (round(edge * size) for edge in PLACES[place])
    pixels = pixels[top:bottom, left:right]
    distance = np.linalg.norm(pixels - np.median(border, axis=0), axis=-1)
    smallest = max(1, round(MIN_AREA * (size / 64) ** 2))
    strongest = np.partition(distance, -smallest, axis=None)[-smallest:].mean()
    if strongest < MIN_CONTRAST:
        return None
    full = np.median(distance[distance > strongest / 2])  # a median, since the inside may be uneven
    parts = np.zeros(distance.shape, np.int32)
    ndimage.label(distance > full / 2, output=parts)
    areas = np.bincount(parts.ravel())[1:]
    first = int(areas.argmax())
    if areas[first] < smallest or (areas > MAX_SECOND_AREA * areas[first]).sum() > 1:
        return None
    thing = parts == first + 1
    color = np.median(pixels[thing & (distance > 0.75 * full)], axis=0)
    covered = np.where(thing, distance / full, 0).clip(0, 1).astype(np.float32)
    return color, _outline(covered)


def _outline(covered: NDArray[np.float32]) -> NDArray[np.float32]:
    """Move and scale covered shares ``[h, w]`` so that every outline has the same center and area.

    A bounding box would do for clean edges, but a single pixel that sticks out would stretch it.
    """
    reach = np.sqrt(covered.sum())  # farther from the center than any corner
    margin = int(np.ceil(reach))
    center = [(covered.sum(axis=axis) * np.arange(covered.shape[1 - axis])).sum() / covered.sum() for axis in (0, 1)]
    left, top = (middle + 0.5 + margin - reach for middle in center)
    framed = Image.fromarray(np.pad(covered, margin))
    box = (left, top, left + 2 * reach, top + 2 * reach)
    return np.asarray(framed.resize((OUTLINE, OUTLINE), Image.Resampling.BILINEAR, box=box))


def reading_scores(reader: ShapeReader, pictures: NDArray[np.uint8], scenes: Sequence[Scene]) -> dict[str, float | int]:
    """Compare what is read at the places of ``scenes`` in ``pictures`` uint8 ``[N, H, W, 3]`` with the scenes.

    Returns:
        The numbers of ``captions`` and ``things``; the shares of things whose ``color``, ``shape`` and ``both`` are
        right; the share of captions with ``all_right``.
    """
    right = [
        [
            (seen.color == thing.color, seen.shape == thing.shape)
            for thing, place in zip(scene.things, scene.places, strict=True)
            if (seen := reader.read(picture, place))
        ]
        for picture, scene in zip(pictures, scenes, strict=True)
    ]
    things = np.array([thing for scene in right for thing in scene])
    return {
        "captions": len(right),
        "things": len(things),
        "color": round(float(things[:, 0].mean()), 4),
        "shape": round(float(things[:, 1].mean()), 4),
        "both": round(float(things.all(axis=1).mean()), 4),
        "all_right": round(float(np.mean([np.all(scene) for scene in right])), 4),
    }
