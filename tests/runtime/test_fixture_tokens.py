"""The runtime over exported graphs against the tokens and images of the reference implementation."""

import json
from collections.abc import Callable

import numpy as np
import pytest
import torch
from places import FIXTURES
from rounding import assert_same_bits, recorded_predictions
from safetensors.numpy import load_file

from bitdance_edge.model import generator, load_generator
from bitdance_edge.runtime import Bundle, Pipeline
from bitdance_edge.runtime.bundle.stage_names import LOOP_STAGES
from bitdance_edge.runtime.given import GivenTokens
from bitdance_edge.runtime.loop import BoundLoop, TokenRequest, generate_tokens


class RecordedNoise:
    """The draws of the reference in its order, grouped by patch."""

    def __init__(
        self, flat: np.ndarray, shapes: list[list[int]], evaluations: int, patch_shape: tuple[int, int]
    ) -> None:
        self.draws, offset = [], 0
        for shape in shapes:
            size = int(np.prod(shape))
            self.draws.append(flat[offset : offset + size].reshape(-1, *patch_shape))
            offset += size
        self.evaluations = evaluations

    def __call__(self, patch: int, rows_apart: bool) -> np.ndarray:
        return np.stack(self.draws[patch * self.evaluations : (patch + 1) * self.evaluations])


@pytest.mark.parametrize("opset", [24, 20])
@pytest.mark.parametrize("fixture", ["cc_1x", "cc_4x_patch"])
def test_tokens_of_the_reference(exported: Callable[..., Bundle], fixture: str, opset: int) -> None:
    bundle = exported(fixture, opset)
    meta = json.loads((FIXTURES / fixture / "meta.json").read_text())
    golden = load_file(FIXTURES / fixture / "golden.safetensors")
    model = bundle.model
    patch_shape = (model.tokens_per_step, model.bits)
    noise = RecordedNoise(golden["ar.noise"], meta["noise_shapes"], meta["sample_steps"] + 1, patch_shape)
    classes = np.array(meta["classes"])
    request = TokenRequest(
        images=len(classes),
        prompt=np.concatenate([classes, np.full_like(classes, model.num_classes)]),
        padding=np.zeros(2 * len(classes), np.int64),
        size=model.default_size,
        steps=meta["sample_steps"],
        guidance=meta["cfg_scale"],
        guidance_schedule=meta["cfg_schedule"],
        given=GivenTokens.nothing(len(classes), model.default_size.patches, patch_shape),
    )
    with Pipeline.open(bundle.folder) as pipeline:
        stages = {name: pipeline.backend.load(name) for name in LOOP_STAGES}
        loop = BoundLoop(pipeline.backend, bundle, stages, request.shape)
        tokens = np.concatenate(list(generate_tokens(loop, request, noise)), axis=1)
        pixels = pipeline.decode(tokens)
    sequence = golden["ar.latent"].reshape(len(tokens), model.bits, -1).transpose(0, 2, 1)
    assert_same_bits(tokens, sequence[:, generation_order(bundle)], predictions(fixture, meta, noise))
    image = np.clip(127.5 * golden["ar.image"] + 128, 0, 255).astype(np.uint8).transpose(0, 2, 3, 1)
    assert np.abs(pixels.astype(int) - image).max() <= 1  # a value on the edge between two levels


def predictions(fixture: str, meta: dict, noise: RecordedNoise) -> list[np.ndarray]:
    """What PyTorch predicts for every patch, from the same draws."""
    model = load_generator(FIXTURES / fixture / "state.safetensors")
    draws = (torch.from_numpy(draw) for draw in noise.draws)
    with recorded_predictions(generator) as found:
        model.sample(
            torch.tensor(meta["classes"]),
            steps=meta["sample_steps"],
            guidance=meta["cfg_scale"],
            schedule=meta["cfg_schedule"],
            noise=draws,
        )
    return found


def generation_order(bundle: Bundle) -> np.ndarray:
    model = bundle.model
    size, side = model.default_size, model.patch_side
    raster = np.arange(size.tokens).reshape(size.grid_height, size.grid_width)
    blocks = raster.reshape(size.grid_height // side, side, size.grid_width // side, side)
    return blocks.transpose(0, 2, 1, 3).reshape(-1)
