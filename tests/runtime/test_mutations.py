"""A manifest is untrusted: with any one place of it changed, it is refused, or makes the same image."""

import json
import resource
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mutations import VALUES, mutations, places, rewrite, spoilt

from bitdance_edge.runtime import Bundle, BundleError, Pipeline, Request
from bitdance_edge.runtime.bundle.dtypes import TENSOR_DTYPES
from bitdance_edge.runtime.bundle.specs import DIMS, SamplingSpec

HOSTILE = [value for value in VALUES if value not in ("7", '"text"')]  # another number, or name, is no fault
FEW = ("null", "true", "-1", "1.5", str(2**62), '""', "[]")  # where the same record stands dozens of times
MOST_MEMORY = 300_000  # kB, beyond what the tests have taken before
MOST_SECONDS = 5.0


@pytest.fixture
def opened_as(tmp_path: Path) -> Callable[[Bundle, bytes], Bundle]:
    """Opens the files of a bundle with another manifest."""

    def open_(bundle: Bundle, manifest: bytes) -> Bundle:
        for path in bundle.folder.iterdir():
            if path.name != "bundle.json" and not (tmp_path / path.name).exists():
                (tmp_path / path.name).symlink_to(path)
        rewrite(tmp_path / "bundle.json", manifest)
        return Bundle.open(tmp_path)

    return open_


def plain(bundle: Bundle) -> Bundle:
    """The bundle with everything that makes no difference to an image with settings of its own."""
    known = {"max_error": None, "tolerance": 0.0, "weight_bytes": 0, "activation_bytes": 0}
    return replace(
        bundle,
        folder=Path(),
        name="",
        opset=24,
        sampling=SamplingSpec(
            steps=1, guidance=1.0, guidance_schedule="constant", time_shift=bundle.sampling.time_shift
        ),
        published=None,
        stages={name: replace(stage, **known) for name, stage in bundle.stages.items()},
        text=None if bundle.text is None else replace(bundle.text, example=""),
        provenance={},
        fast_preview=None,
        digest="",
    )


def image(bundle: Bundle) -> np.ndarray:
    subject: dict[str, Any] = (
        {"classes": [3]} if bundle.text is None else {"prompts": ["a red fish"], "negative_prompt": "a"}
    )
    asked = Request(**subject, seed=1, steps=1, guidance=2.0, guidance_schedule="constant", sampler="sde")
    with Pipeline.open(bundle.folder, threads=1) as pipeline:
        pixels = pipeline.generate(asked)[0].pixels
    assert pixels is not None
    return pixels


@pytest.mark.parametrize(
    ("fixture", "omit", "least"),
    # A text-to-image bundle's other stages are described as those of classes are.
    [("cc_4x_patch", [], 1953), ("t2i_16x_swiglu", ["backbone", "head", "modulation", "time", "encoder"], 1000)],
)
def test_one_changed_place_is_refused_or_changes_nothing(
    exported: Callable[..., Bundle],
    opened_as: Callable[[Bundle, bytes], Bundle],
    fixture: str,
    omit: list[str],
    least: int,
) -> None:
    bundle = exported(fixture)
    content = (bundle.folder / "bundle.json").read_bytes()
    tried, different, whole = 0, [], plain(bundle)
    for name, manifest in mutations(json.loads(content), HOSTILE, FEW, omit):
        tried += 1
        try:
            opened = opened_as(bundle, manifest)
        except BundleError as error:
            assert "\n" not in str(error), name
            assert len(str(error)) < 800, name
            continue
        if plain(opened) != whole:
            different.append((name, manifest))
    assert tried >= least
    # What no other record contradicts: a stage that is missing, or the text that stands for no prompt.
    assert len(different) < 30, [name for name, _ in different]
    expected = image(bundle)
    for name, manifest in different:
        try:
            same = np.array_equal(image(opened_as(bundle, manifest)), expected)
        except BundleError:
            continue
        assert same, name


@pytest.mark.parametrize("fixture", ["cc_4x_patch", "t2i_16x_swiglu"])
def test_a_type_or_number_that_another_record_contradicts_is_refused(
    exported: Callable[..., Bundle], opened_as: Callable[[Bundle, bytes], Bundle], fixture: str
) -> None:
    """As allowed as the right one: ``cache.dtype`` float16, one layer more, B in place of R."""
    bundle = exported(fixture)
    document = json.loads((bundle.folder / "bundle.json").read_text(encoding="utf-8"))
    # What is the bundle's to say; whether files have so many bytes is found when they are loaded.
    free = {"opset", "num_classes", "steps", "suffixes", "bytes", "weight_bytes", "activation_bytes", "provenance"}
    tried = 0
    for path in places(document):
        holder = document
        for step in path[:-1]:
            holder = holder[step]
        right = holder[path[-1]]
        if free & set(path) or isinstance(right, bool):
            continue
        names = next((names for names in (TENSOR_DTYPES, DIMS) if right in names), ())
        for other in (right - 1, right + 1, 2 * right) if isinstance(right, int) and right else names:
            if other == right:
                continue
            holder[path[-1]] = other
            with pytest.raises(BundleError):
                opened_as(bundle, json.dumps(document).encode())
            tried += 1
        holder[path[-1]] = right
    assert tried > 300


def test_what_is_no_manifest_is_refused_quickly_and_in_little_memory(
    bundle: Bundle, opened_as: Callable[[Bundle, bytes], Bundle]
) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name, manifest in spoilt((bundle.folder / "bundle.json").read_bytes()):
        started = time.process_time()
        with pytest.raises(BundleError, match=r"bundle\.json"):
            opened_as(bundle, manifest)
        assert time.process_time() - started < MOST_SECONDS, name
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MOST_MEMORY


def test_a_byte_order_mark_changes_nothing(bundle: Bundle, opened_as: Callable[[Bundle, bytes], Bundle]) -> None:
    content = (bundle.folder / "bundle.json").read_bytes()
    assert plain(opened_as(bundle, b"\xef\xbb\xbf" + content)) == plain(bundle)
