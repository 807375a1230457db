import numpy as np
import pytest
from PIL import Image, ImageFilter

from bitdance_edge.training.shape_reader import Seen, ShapeReader, reading_scores
from bitdance_edge.training.shapes import Scene, Thing, all_scenes, render

RED_CIRCLE, BLUE_SQUARE = Thing("red", "circle"), Thing("blue", "square")
SIDE_BY_SIDE = Scene((RED_CIRCLE, BLUE_SQUARE), "to the left of")


@pytest.fixture(scope="module")
def reader() -> ShapeReader:
    return ShapeReader.fitted(64)


@pytest.fixture(scope="module")
def held_out() -> list[Scene]:
    return [scene for scene in all_scenes() if scene.held_out][::16]


def test_everything_drawn_is_read_as_asked(reader: ShapeReader, held_out: list[Scene]) -> None:
    scores = reading_scores(reader, render(held_out, 64, seed=9), held_out)
    assert scores["captions"] == len(held_out) == 53
    assert scores["things"] == 2 * len(held_out)
    assert (scores["color"], scores["shape"], scores["both"], scores["all_right"]) == (1, 1, 1, 1)


def test_other_captions_are_not_what_is_read(reader: ShapeReader, held_out: list[Scene]) -> None:
    pictures = np.roll(render(held_out, 64, seed=9), 31, axis=0)
    scores = reading_scores(reader, pictures, held_out)
    assert scores["color"] < 0.3
    assert scores["shape"] < 0.5
    assert scores["all_right"] < 0.05


def test_swapped_places_are_wrong(reader: ShapeReader) -> None:
    swapped = Scene((RED_CIRCLE, BLUE_SQUARE), "to the right of")
    assert reading_scores(reader, render([swapped] * 4, 64, seed=2), [SIDE_BY_SIDE] * 4)["both"] == 0


def test_half_right_counts_half(reader: ShapeReader) -> None:
    other = Scene((RED_CIRCLE, Thing("blue", "star")), "to the left of")
    scores = reading_scores(reader, render([other] * 4, 64, seed=2), [SIDE_BY_SIDE] * 4)
    assert (scores["color"], scores["shape"], scores["both"], scores["all_right"]) == (1, 0.5, 0.5, 0)


def test_nothing_and_two_things_at_a_place_are_not_read(reader: ShapeReader) -> None:
    empty = np.full((64, 64, 3), 230, np.uint8)
    assert reader.read(empty, "left") == Seen(None, None)
    assert reader.read(render([SIDE_BY_SIDE], 64, seed=2)[0], "whole") == Seen(None, None)


def test_blurred_shapes_lose_their_shape_before_their_color(reader: ShapeReader, held_out: list[Scene]) -> None:
    blur = ImageFilter.GaussianBlur(2)
    blurred = [np.asarray(Image.fromarray(picture).filter(blur)) for picture in render(held_out, 64, seed=9)]
    scores = reading_scores(reader, np.stack(blurred), held_out)
    assert scores["color"] >= 0.99
    assert scores["shape"] < 0.8


def test_pictures_of_another_size_are_read_by_a_reader_of_that_size(held_out: list[Scene]) -> None:
    scores = reading_scores(ShapeReader.fitted(128), render(held_out[:8], 128, seed=1), held_out[:8])
    assert scores["all_right"] == 1
