"""The runtimes of the specification make the tokens of this package's runtime, and of the reference."""

import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from examples_tools import build, cannot_build, minimal_runtime
from places import FIXTURES
from safetensors.numpy import load_file

from bitdance_edge.runtime import Bundle, Pipeline, Request


@pytest.fixture(scope="module")
def minimal() -> ModuleType:
    return minimal_runtime()


def with_sampling(bundle: Bundle, folder: Path, **sampling: object) -> Bundle:
    """A bundle of the same files with other defaults; few steps."""
    for path in bundle.folder.iterdir():
        if path.name != "bundle.json":
            (folder / path.name).symlink_to(path)
    changed = replace(bundle, folder=folder, sampling=replace(bundle.sampling, **{"steps": 3, **sampling}))
    changed.write()
    return Bundle.open(folder)


@pytest.mark.parametrize(
    "sampling",
    [{"guidance_schedule": "linear"}, {"guidance_schedule": "constant", "sampler": "ode"}, {"time_shift": 1.5}],
    ids=str,
)
@pytest.mark.parametrize("fixture", ["cc_1x", "cc_4x_patch"])
def test_classes(
    exported: Callable[..., Bundle], minimal: ModuleType, tmp_path: Path, fixture: str, sampling: dict
) -> None:
    bundle = with_sampling(exported(fixture), tmp_path, **sampling)
    with Pipeline.open(bundle.folder, threads=1) as pipeline:
        images = pipeline.generate(Request(classes=[3, 7], seed=5))
    size = bundle.model.default_size
    runtime = minimal.Bundle(bundle.folder)
    tokens = runtime.generate(*runtime.rows([3, 7], str(size)), [5, 6], size.width, size.height)
    assert np.array_equal(tokens, np.stack([image.tokens for image in images]))
    pixels = runtime.decode(tokens, [5, 6], size.width, size.height)
    assert np.array_equal(pixels, np.stack([np.asarray(image.pixels) for image in images]))


def test_prompts_of_different_length(word_bundle: Bundle, minimal: ModuleType, tmp_path: Path) -> None:
    bundle = with_sampling(word_bundle, tmp_path)
    with Pipeline.open(bundle.folder, threads=1) as pipeline:
        images = pipeline.generate(Request(prompts=["a red fish", "fish"], seed=1, size="64x64"))
    runtime = minimal.Bundle(bundle.folder)
    tokens = runtime.generate(*runtime.rows(["a red fish", "fish"], "64x64"), [1, 2], 64, 64)
    assert np.array_equal(tokens, np.stack([image.tokens for image in images]))


def test_tokens_of_the_reference(exported: Callable[..., Bundle], minimal: ModuleType, tmp_path: Path) -> None:
    """With the draws of the reference in place of its own, the minimal runtime makes the fixture's tokens."""
    meta = json.loads((FIXTURES / "cc_4x_patch" / "meta.json").read_text(encoding="utf-8"))
    golden = load_file(FIXTURES / "cc_4x_patch" / "golden.safetensors")
    sampling = {"steps": meta["sample_steps"], "guidance": meta["cfg_scale"], "guidance_schedule": meta["cfg_schedule"]}
    bundle = with_sampling(exported("cc_4x_patch"), tmp_path, **sampling)
    evaluations, draws = meta["sample_steps"] + 1, iter(np.split(golden["ar.noise"], np.cumsum(sizes(meta))[:-1]))
    recorded: dict[int, np.ndarray] = {}

    def draw(seed: int, stream: int, patch: int, steps: int, shape: tuple[int, ...]) -> np.ndarray:
        if patch not in recorded:
            recorded[patch] = np.stack([next(draws).reshape(-1, *shape) for _ in range(evaluations)])
        return recorded[patch][:, seed + stream * len(meta["classes"])]

    module = minimal_runtime()
    module.normals = draw  # type: ignore[attr-defined]
    runtime, size = module.Bundle(bundle.folder), bundle.model.default_size
    seeds = list(range(len(meta["classes"])))  # say which draw is whose
    tokens = runtime.generate(*runtime.rows(meta["classes"], str(size)), seeds, size.width, size.height)
    side, across = bundle.model.patch_side, size.patches_across
    squares = tokens.reshape(len(seeds), size.patches_down, across, side, side, bundle.model.bits)
    latent = squares.transpose(0, 5, 1, 3, 2, 4).reshape(golden["ar.latent"].shape)
    assert np.array_equal(latent, golden["ar.latent"])


def sizes(meta: dict) -> list[int]:
    return [int(np.prod(shape)) for shape in meta["noise_shapes"]]


@pytest.mark.skipif(bool(cannot_build()), reason=cannot_build() or "it can be built")
def test_the_same_in_cpp(exported: Callable[..., Bundle], tmp_path: Path) -> None:
    program = build(tmp_path)
    for name, fixture, sampling in (
        ("linear", "cc_4x_patch", {"guidance_schedule": "linear"}),
        ("ode", "cc_1x", {"guidance_schedule": "constant", "sampler": "ode"}),
    ):
        folder = tmp_path / name
        folder.mkdir()
        bundle = with_sampling(exported(fixture), folder, **sampling)
        subprocess.run([str(program), str(folder), "7", "5"], cwd=tmp_path, check=True)
        with Pipeline.open(folder, threads=1) as pipeline:
            (image,) = pipeline.generate(Request(classes=[7], seed=5))
        assert np.array_equal(np.fromfile(tmp_path / "tokens.bin", np.int8), image.tokens.ravel())
        header, _, pixels = (tmp_path / "image.ppm").read_bytes().partition(b"\n255\n")
        assert header == f"P6\n{bundle.model.default_size.width} {bundle.model.default_size.height}".encode()
        assert image.pixels is not None and pixels == image.pixels.tobytes()
