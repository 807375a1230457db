"""Engines of a text-to-image bundle: grouped attention, prompts of a range of lengths, one profile an image size."""

import shutil
from collections.abc import Callable

import pytest
from building import build

from bitdance_edge.engines.samples import record_samples
from bitdance_edge.engines.shapes import shape_profiles
from bitdance_edge.runtime import Bundle
from bitdance_edge.runtime.backends.tensorrt_library import Library
from bitdance_edge.runtime.bundle.sidecar import Sidecar


@pytest.fixture(scope="module")
def bundle(exported: Callable[..., Bundle], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("text") / "copy"  # engines are built beside the graphs
    shutil.copytree(exported("t2i_16x_swiglu").folder, folder)
    return Bundle.open(folder)


@pytest.fixture(scope="module")
def sidecars(bundle: Bundle, library: Library) -> dict[str, Sidecar]:
    return build(bundle, library, ["prompt", "tokens", "backbone", "decoder"])


def test_cache_and_grouped_attention_are_layers_of_tensorrt(bundle: Bundle, sidecars: dict[str, Sidecar]) -> None:
    kinds = sidecars["backbone"].layers
    assert kinds["KV_CACHE_UPDATE"] == {"FLOAT": 2 * bundle.cache.layers}
    assert kinds["ROTARY_EMBEDDING"] == {"FLOAT": 2 * bundle.cache.layers}
    assert kinds["ATTENTION_INPUT"] == {"FLOAT": bundle.cache.layers}
    assert sidecars["backbone"].options["in_place_cache"]


def test_profiles_hold_every_size_and_every_prompt(bundle: Bundle, sidecars: dict[str, Sidecar]) -> None:
    assert list(sidecars["decoder"].profiles) == ["192x128", "64x64"]
    assert bundle.text is not None
    longest = bundle.model.prompt_tokens
    shortest, _, most = sidecars["backbone"].profiles["prompt"]["embeddings"]
    assert (shortest[1], most[1]) == (longest - bundle.text.max_prompt + 1, longest)
    assert [shape[1] for shape in sidecars["backbone"].profiles["patch"]["embeddings"]] == [16, 16, 16]


def test_recorded_inputs_fit_the_profiles(bundle: Bundle) -> None:
    for (stage, sample), inputs in record_samples(bundle).items():
        profiles = shape_profiles(bundle, stage, 1)
        profile = next((profile for profile in profiles if profile.name == sample), profiles[0])
        for name, values in inputs.items():
            smallest, _, largest = profile.shapes[name]
            for least, size, most in zip(smallest, values.shape, largest, strict=True):
                assert least <= size <= most, (stage, name)
