import numpy as np
import pytest

from bitdance_edge.runtime.noise import ImageNoise, Stream, normals


def test_noise_is_pinned() -> None:
    """These numbers make every seed's image: a change here changes all of them."""
    draws = normals(7, Stream.IMAGE, 3, 2, (1, 4))
    expected = [
        [-1.0899571180343628, -0.6771225929260254, -0.634207546710968, 1.7870177030563354],
        [-1.3247394561767578, 0.4884622395038605, -0.6152912378311157, 2.3368752002716064],
    ]
    np.testing.assert_array_equal(draws[:, 0], np.array(expected, np.float32))


def test_a_step_does_not_depend_on_how_many_are_drawn() -> None:
    few, many = (normals(1, Stream.IMAGE, 5, steps, (4, 16)) for steps in (3, 101))
    np.testing.assert_array_equal(few, many[:3])


def test_patches_steps_images_and_streams_are_independent() -> None:
    draws = [
        normals(seed, stream, patch, 1, (4, 16)).ravel()
        for seed in (0, 1)
        for stream in Stream
        for patch in (0, 1, 2**40)
    ]
    assert np.abs(np.corrcoef(draws) - np.eye(len(draws))).max() < 0.6
    assert len({tuple(draw) for draw in draws}) == len(draws)


def test_image_noise_depends_on_the_seed_alone() -> None:
    batch = ImageNoise([3, 4, 5], 2, (4, 16))(1, False)
    np.testing.assert_array_equal(batch[:, 1:2], ImageNoise([4], 2, (4, 16))(1, False))
    apart = ImageNoise([3, 4, 5], 2, (4, 16))(1, True)
    assert apart.shape == (3, 6, 4, 16)
    np.testing.assert_array_equal(apart[:, :3], batch)


@pytest.mark.parametrize(("steps", "shape"), [(5, (1, 32)), (5, (4, 32)), (100, (4, 16)), (2, (3, 5))])
def test_patches_drawn_together_have_the_bits_of_those_drawn_alone(steps: int, shape: tuple[int, int]) -> None:
    together = ImageNoise([3, 2**62 + 1], steps, shape, ahead=8)
    for patch in (0, 1, 2, 7, 6, 300):
        for i, seed in enumerate(together.seeds):
            alone = normals(seed, Stream.IMAGE, patch, steps + 1, shape)
            np.testing.assert_array_equal(together(patch, False)[:, i], alone)


def test_a_sampler_without_noise_starts_from_the_same_draw() -> None:
    noisy, start = (ImageNoise([3, 4], 2, (4, 16), start_only=only)(1, True) for only in (False, True))
    np.testing.assert_array_equal(start[0], noisy[0])
    assert start.shape == noisy.shape and not start[1:].any()


@pytest.mark.parametrize("shape", [(1, 16), (4, 32), (1, 3)])
def test_noise_is_standard_normal(shape: tuple[int, int]) -> None:
    draws = normals(11, Stream.IMAGE, 0, 20_000, shape).astype(np.float64)
    assert abs(draws.mean()) < 0.01
    assert abs(draws.std() - 1) < 0.01
    assert abs((draws**4).mean() - 3) < 0.1
