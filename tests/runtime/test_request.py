"""A request that cannot be served is one error that names the value and what is allowed."""

from dataclasses import replace

import numpy as np
import pytest

from bitdance_edge.runtime import Bundle, Request, RequestError
from bitdance_edge.runtime.bundle.specs import SamplingSpec


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"classes": [10]}, "class is 10; it must be a whole number from 0 to 9"),
        ({"classes": [-1]}, "class is -1"),
        ({"classes": ["cat"]}, "class 'cat' is unknown; give an id from 0 to 9"),
        ({"classes": [1.5]}, "class is 1.5"),
        ({"classes": []}, "no class given"),
        ({"steps": 0}, "steps is 0; it must be a whole number from 1"),
        ({"steps": -3}, "steps is -3"),
        ({"steps": 2.0}, "steps is 2.0"),
        ({"count": 0}, "count is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**63 - 1, "count": 2}, "no room for 2 images"),
        ({"seeds": [1, 2]}, "2 seeds for 1 images"),
        ({"seeds": [-1]}, "seed is -1"),
        ({"seeds": [1], "seed": 1}, "seed and seeds are both given"),
        ({"guidance": float("nan")}, "guidance is nan; it must be a number from 1"),
        ({"guidance": float("inf")}, "guidance is inf"),
        ({"guidance": 0.5}, "guidance is 0.5"),
        ({"guidance": "much"}, "guidance is 'much'"),
        ({"size": "64x32"}, "size is 64x32; this bundle makes 32x32 only"),
        ({"size": (64, 32)}, r"size is \(64, 32\); give Size"),
        ({"output": "jpeg"}, "output is 'jpeg'; it must be one of image, tokens"),
        ({"preview_every": -1}, "preview_every is -1"),
        ({"preview_kind": "quick"}, "preview_kind is 'quick'; it must be one of full, fast"),
        ({"preview_share": 1.0}, "preview_share is 1.0; it must be a number between 0 and 1"),
        ({"preview_share": 0.1, "preview_kind": "fast"}, "preview_share is for full previews"),
        ({"sampler": "euler"}, "sampler is 'euler'; it must be one of sde, ode"),
        ({"sampler": ""}, "sampler is ''"),
        ({"guidance_schedule": "cosine"}, "guidance_schedule is 'cosine'; it must be one of constant, linear"),
        ({"prefix": np.ones((3, 16))}, "multiple of 4 tokens"),
        ({"prefix": np.ones((4, 15))}, r"prefix has shape \[4, 15\]"),
        ({"prefix": np.ones((68, 16))}, "at most 64"),
        ({"prefix": np.zeros((4, 16))}, "other than -1 and .1"),
    ],
)
def test_bad_value_is_named(bundle: Bundle, fields: dict, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        Request(**{"classes": [1], **fields}).resolve(bundle)


def test_defaults_come_from_the_bundle(bundle: Bundle) -> None:
    settings = Request(classes=["3"], size="32x32").resolve(bundle)
    assert (settings.steps, settings.guidance, settings.guidance_schedule) == (100, 4.0, "linear")
    assert settings.images[0].class_id == 3
    assert 0 <= settings.images[0].seed < 2**32


def test_published_settings_are_kept_beside_the_defaults(bundle: Bundle) -> None:
    chosen = SamplingSpec(steps=8, guidance=1.25, guidance_schedule="constant", time_shift=1.0, sampler="ode")
    changed = replace(bundle, sampling=chosen, published=bundle.sampling)
    default = Request(classes=[3]).resolve(changed)
    assert (default.steps, default.guidance, default.guidance_schedule, default.sampler) == (8, 1.25, "constant", "ode")
    published = Request(classes=[3], published=True, steps=50).resolve(changed)
    assert (published.steps, published.guidance) == (50, 4.0)
    assert (published.guidance_schedule, published.sampler) == ("linear", "sde")
    # Without settings of their own the defaults are the published ones.
    assert Request(classes=[3], published=True).resolve(bundle).steps == 100


def test_images_come_class_by_class_with_growing_seeds(bundle: Bundle) -> None:
    images = Request(classes=[7, 2], count=2, seed=100).resolve(bundle).images
    assert [(image.index, image.class_id, image.seed) for image in images] == [
        (0, 7, 100),
        (1, 7, 101),
        (2, 2, 102),
        (3, 2, 103),
    ]


def test_images_asked_for_apart_keep_their_own_seeds(bundle: Bundle) -> None:
    images = Request(classes=[7, 2], seeds=[9, 4]).resolve(bundle).images
    assert [(image.class_id, image.seed) for image in images] == [(7, 9), (2, 4)]
