"""Reads drawn shapes back out of pictures: which color and which shape stand at a place; the judge of the captions.

Plain image processing, fitted on clean drawings alone: what differs from the border's color is the thing, its color the
nearest of the palette, its shape the nearest mean outline. Knows nothing of models.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from bitdance_edge.training.shapes import COLORS, PLACES, SHAPES, Scene, Thing, render

OUTLINE = 16  # side of the squares that outlines are compared on
FITTED_ON = 128  # drawings of each shape
FARTHEST_OUTLINE = 0.12  # from the nearest mean, as a root mean square difference of covered shares; drawings: 0.03
CLEARLY = 0.7  # the nearest mean is at most at this share of the second nearest's distance; drawings: 0.2
FAINTEST = 40.0  # a thing differs from the background by at least so much, as a distance in RGB
SMALLEST = 40  # pixels of a thing in a picture of 64x64
SECOND = 0.25  # a second thing of this share of the first one's pixels makes a place unreadable
FARTHEST_COLOR = 90.0  # from the palette, as a distance in RGB


@dataclass(frozen=True)
class Seen:
    """What stands at a place; None where no color or no shape of ours can be made out."""

    color: str | None
    shape: str | None


@dataclass(frozen=True)
class ShapeReader:
    outlines: NDArray[np.float32]  # [shapes, OUTLINE, OUTLINE], covered shares

    @classmethod
    def fitted(cls, size: int, seed: int = 0) -> "ShapeReader":
        """A reader of pictures of ``size`` pixels a side."""
        outlines = []
        for number, shape in enumerate(SHAPES):
            scenes = [Scene((Thing(color, shape),)) for color in COLORS] * (FITTED_ON // len(COLORS))
            found = [_find(picture, "whole") for picture in render(scenes, size, (seed, number))]
            outlines.append(np.mean([one[1] for one in found if one is not None], axis=0))
        return cls(np.stack(outlines))

    def read(self, picture: NDArray[np.uint8], place: str) -> Seen:
        """The thing at ``place`` (of ``PLACES``) of a picture ``[H, W, 3]``."""
        found = _find(picture, place)
        if found is None:
            return Seen(None, None)
        color, outline = found
        away = {name: float(np.linalg.norm(color - np.array(known))) for name, known in COLORS.items()}
        nearest_color = min(away, key=away.__getitem__)
        differences = np.sqrt(np.square(self.outlines - outline).mean(axis=(1, 2)))
        nearest, second = np.argsort(differences)[:2]
        clear = differences[nearest] <= min(FARTHEST_OUTLINE, CLEARLY * differences[second])
        return Seen(
            nearest_color if away[nearest_color] <= FARTHEST_COLOR else None, list(SHAPES)[nearest] if clear else None
        )


def _find(picture: NDArray[np.uint8], place: str) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
    """Color ``[3]`` and outline ``[OUTLINE, OUTLINE]`` of the thing at a place; None where there is none or more."""
    pixels = picture.astype(np.float32)
    size = len(pixels)
    border = np.concatenate([pixels[[0, -1]].reshape(-1, 3), pixels[:, [0, -1]].reshape(-1, 3)])
    left, top, right, bottom = (round(edge * size) for edge in PLACES[place])
    pixels = pixels[top:bottom, left:right]
    distance = np.linalg.norm(pixels - np.median(border, axis=0), axis=-1)
    smallest = max(1, round(SMALLEST * (size / 64) ** 2))
    strongest = np.partition(distance, -smallest, axis=None)[-smallest:].mean()
    if strongest < FAINTEST:
        return None
    full = np.median(distance[distance > strongest / 2])  # of the inside, which may be uneven
    parts = np.zeros(distance.shape, np.int32)
    ndimage.label(distance > full / 2, output=parts)
    areas = np.bincount(parts.ravel())[1:]
    first = int(areas.argmax())
    if areas[first] < smallest or (areas > SECOND * areas[first]).sum() > 1:
        return None
    thing = parts == first + 1
    color = np.median(pixels[thing & (distance > 0.75 * full)], axis=0)
    covered = np.where(thing, distance / full, 0).clip(0, 1).astype(np.float32)
    return color, _outline(covered)


def _outline(covered: NDArray[np.float32]) -> NDArray[np.float32]:
    """Covered shares ``[h, w]`` moved and scaled so that centre and area are those of every outline.

    A box around the thing would do as well for clean edges, but a pixel that sticks out would stretch it.
    """
    reach = np.sqrt(covered.sum())  # from the centre, further than any corner
    margin = int(np.ceil(reach))
    centre = [(covered.sum(axis=axis) * np.arange(covered.shape[1 - axis])).sum() / covered.sum() for axis in (0, 1)]
    left, top = (middle + 0.5 + margin - reach for middle in centre)
    framed = Image.fromarray(np.pad(covered, margin))
    box = (left, top, left + 2 * reach, top + 2 * reach)
    return np.asarray(framed.resize((OUTLINE, OUTLINE), Image.Resampling.BILINEAR, box=box))


def reading_scores(reader: ShapeReader, pictures: NDArray[np.uint8], scenes: Sequence[Scene]) -> dict[str, float | int]:
    """Shares of the things of ``scenes`` that read as asked at their places in ``pictures`` ``[N, H, W, 3]``.

    Returns:
        ``captions`` and ``things`` counted; the shares of things right in ``color``, in ``shape`` and in ``both``, and
        the share of captions ``all_right``.
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
