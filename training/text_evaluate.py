"""How well pictures follow captions: the share of colors and shapes that are read as requested at their places.

The same shares of clean drawings and of their reconstructions show the reader's and the tokenizer's own losses.
"""

from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from bitdance_edge.model import SamplingDefaults, TextToImage, Tokenizer
from bitdance_edge.model.prompt import PromptTokenizer
from bitdance_edge.training.errors import TrainingError
from bitdance_edge.training.image_set import ImageSet
from bitdance_edge.training.shape_reader import ShapeReader, reading_scores
from bitdance_edge.training.shapes import Scene, all_scenes
from bitdance_edge.training.text_generator import draw_captions
from bitdance_edge.training.tokenizer import mean_psnr, reconstruct, share_of_ones

SHARES = ("color", "shape", "both", "all_right")
DRAW_BATCH = 120
SINGLES_DRAWN = 8  # pictures of each thing alone


def shape_tokenizer_scores(tokenizer: Tokenizer, held_out: ImageSet) -> dict[str, Any]:
    """Score a tokenizer on held-out drawings: PSNR, shares read before and after it, share of ones per bit."""
    rebuilt = reconstruct(tokenizer, held_out.images)
    return {
        "held_out_images": len(held_out),
        "psnr_db": round(mean_psnr(held_out.images, rebuilt), 2),
        "read_in_drawings": _read(held_out, held_out.images),
        "read_in_reconstructions": _read(held_out, rebuilt),
        "share_of_ones_per_bit": share_of_ones(tokenizer, held_out.images),
    }


def text_scores(
    model: TextToImage,
    prompts: PromptTokenizer,
    held_out: ImageSet,
    *,
    captions: int,
    seeds: tuple[int, ...],
    sampling: SamplingDefaults,
) -> dict[str, Any]:
    """Score pictures of held-out captions, ``captions`` per seed, and of every thing alone.

    Raises:
        TrainingError: fewer captions are held out than ``captions``, or there is no seed.
    """
    if not 1 <= captions <= len(held_out):
        raise TrainingError(
            f"--images is {captions}; allowed are 1 to {len(held_out)}, the number of held-out captions"
        )
    if not seeds:
        raise TrainingError("--seeds is empty; give at least one number")
    chosen = held_out[np.random.default_rng(0).permutation(len(held_out))[:captions]]
    pairs, singles = scenes_of(chosen), [scene for scene in all_scenes() if scene.relation is None]
    runs = [_drawn_scores(model, prompts, pairs, sampling, seed) for seed in seeds]
    return {
        "held_out_captions": captions,
        "seeds": list(seeds),
        "sampling": {"steps": sampling.steps, "guidance": sampling.guidance, "schedule": sampling.guidance_schedule},
        **{share: round(float(np.mean([run[share] for run in runs])), 4) for share in SHARES},
        "read_in_drawings": _read(chosen, chosen.images),
        "read_in_reconstructions": _read(chosen, reconstruct(model.tokenizer, chosen.images)),
        "single_things": _drawn_scores(model, prompts, singles * SINGLES_DRAWN, sampling, seeds[0]),
        "per_seed": [{"seed": seed, **run} for seed, run in zip(seeds, runs, strict=True)],
    }


def scenes_of(images: ImageSet) -> list[Scene]:
    """Return the scenes of the labels."""
    scenes = all_scenes()
    return [scenes[label] for label in images.labels.tolist()]


def _read(images: ImageSet, pictures: torch.Tensor) -> dict[str, float | int]:
    return reading_scores(ShapeReader.fitted(pictures.shape[1]), pictures.numpy(), scenes_of(images))


def _drawn_scores(
    model: TextToImage, prompts: PromptTokenizer, scenes: list[Scene], sampling: SamplingDefaults, seed: int
) -> dict[str, float | int]:
    captions = [scene.caption for scene in scenes]
    parts = range(0, len(captions), DRAW_BATCH)
    # disable=None: no progress line where standard error is not a terminal
    pictures = [
        draw_captions(model, prompts, captions[first : first + DRAW_BATCH], sampling, (seed, first))
        for first in tqdm(parts, desc=f"drawing, seed {seed}", leave=False, disable=None)
    ]
    return reading_scores(ShapeReader.fitted(model.config.sizes[0][0]), np.concatenate(pictures), scenes)
