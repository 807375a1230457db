"""Engines of a text-to-image bundle: grouped attention, prompts of a range of lengths, one profile an image size."""

import shutil
from collections.abc import Callable

import pytest
from building import build

from bitdance_edge.engines.samples import record_samples
from bitdance_edge.engines.shapes import shape_profiles
from bitdance_edge.runtime import Bundle
from bitdance_edge.runtime.bundle.record import BuildRecord


@pytest.fixture(scope="module")
def bundle(exported: Callable[..., Bundle], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("text") / "copy"  # engines are built into the bundle
    shutil.copytree(exported("t2i_16x_swiglu").folder, folder)
    return Bundle.open(folder)


@pytest.fixture(scope="module")
def records(bundle: Bundle) -> dict[str, BuildRecord]:
    return build(bundle, "rtx", ["prompt", "tokens", "backbone", "decoder"])


def test_cache_and_grouped_attention_are_layers_of_tensorrt(bundle: Bundle, records: dict[str, BuildRecord]) -> None:
    kinds = records["backbone"].layers
    assert kinds["KV_CACHE_UPDATE"] == {"FLOAT": 2 * bundle.cache.layers}
    assert kinds["ROTARY_EMBEDDING"] == {"FLOAT": 2 * bundle.cache.layers}
    assert kinds["ATTENTION_INPUT"] == {"FLOAT": bundle.cache.layers}
    assert records["backbone"].options["in_place_cache"]


def test_profiles_hold_every_size_and_every_prompt(bundle: Bundle, records: dict[str, BuildRecord]) -> None:
    assert list(records["decoder"].profiles) == ["192x128", "64x64"]
    assert bundle.text is not None
    longest = bundle.model.prompt_tokens
    shortest, _, most = records["backbone"].profiles["prompt"]["embeddings"]
    assert (shortest[1], most[1]) == (longest - bundle.text.max_prompt + 1, longest)
    assert [shape[1] for shape in records["backbone"].profiles["patch"]["embeddings"]] == [16, 16, 16]


def test_recorded_inputs_fit_the_profiles(bundle: Bundle) -> None:
    for (stage, sample), inputs in record_samples(bundle).items():
        profiles = shape_profiles(bundle, stage, 1)
        profile = next((profile for profile in profiles if profile.name == sample), profiles[0])
        for name, values in inputs.items():
            smallest, _, largest = profile.shapes[name]
            for least, size, most in zip(smallest, values.shape, largest, strict=True):
                assert least <= size <= most, (stage, name)
