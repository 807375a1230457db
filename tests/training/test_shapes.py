import numpy as np
import pytest

from bitdance_edge.training.shapes import COLORS, PLACES, SHAPES, Scene, Thing, all_scenes, draw_scenes, render

RED_CIRCLE, BLUE_SQUARE = Thing("red", "circle"), Thing("blue", "square")


def test_captions_say_what_stands_where() -> None:
    assert Scene((RED_CIRCLE,)).caption == "a red circle"
    pair = Scene((Thing("orange", "star"), BLUE_SQUARE), "to the left of")
    assert pair.caption == "an orange star to the left of a blue square"
    assert pair.places == ("left", "right")
    assert Scene((RED_CIRCLE, BLUE_SQUARE), "below").places == ("bottom", "top")


def test_every_caption_is_said_once() -> None:
    captions = [scene.caption for scene in all_scenes()]
    things = len(COLORS) * len(SHAPES)
    assert len(set(captions)) == len(captions) == things + things * (things - 1) * 4


def test_a_held_out_pair_is_never_trained_on_in_any_wording() -> None:
    held_out = {frozenset(scene.things) for scene in all_scenes() if scene.held_out}
    trained = {frozenset(scene.things) for scene in all_scenes() if not scene.held_out}
    assert not held_out & trained
    assert sum(scene.held_out for scene in all_scenes()) >= 500
    words = {word for scene in all_scenes() if not scene.held_out for word in scene.caption.split()}
    assert words == {word for scene in all_scenes() for word in scene.caption.split()}


def test_scenes_are_drawn_alike_for_a_seed_and_in_the_stated_shares() -> None:
    scenes = all_scenes()
    drawn = draw_scenes(scenes, 4000, seed=3)
    assert np.array_equal(drawn, draw_scenes(scenes, 4000, seed=3))
    singles = np.mean([scenes[index].relation is None for index in drawn])
    assert singles == pytest.approx(0.15, abs=0.03)


def test_pictures_repeat_for_a_seed_and_differ_between_seeds() -> None:
    scenes = [Scene((RED_CIRCLE, BLUE_SQUARE), "above")] * 2
    pictures = render(scenes, 64, seed=1)
    assert (pictures.shape, pictures.dtype) == ((2, 64, 64, 3), np.uint8)
    assert np.array_equal(pictures, render(scenes, 64, seed=1))
    assert not np.array_equal(pictures[0], pictures[1])
    assert not np.array_equal(pictures, render(scenes, 64, seed=2))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("relation", ["to the left of", "to the right of", "above", "below"])
def test_things_are_of_their_color_and_wholly_at_their_places(shape: str, relation: str) -> None:
    scene = Scene((Thing("red", shape), Thing("blue", shape)), relation)
    for picture in render([scene] * 8, 64, seed=5).astype(int):
        reddish = picture[..., 0] - picture[..., 2] > 60
        bluish = picture[..., 2] - picture[..., 0] > 60
        for found, place in zip((reddish, bluish), scene.places, strict=True):
            left, top, right, bottom = (int(64 * edge) for edge in PLACES[place])
            assert found.sum() > 60
            assert found[top:bottom, left:right].sum() == found.sum()


def test_a_circle_has_the_area_of_its_radius() -> None:
    picture = render([Scene((Thing("black", "circle"),))], 256, seed=0)[0].astype(float)
    darkness = 1 - (picture.mean(-1) - 25) / (np.median(picture) - 25)
    rows = darkness.max(axis=1) > 0.5
    radius = rows.sum() / 2
    assert darkness.clip(0, 1).sum() == pytest.approx(np.pi * radius**2, rel=0.1)
