"""How well pictures follow captions: colors and shapes read at their places, beside what reading itself can lose."""

from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from bitdance_edge.model import SamplingDefaults, TextToImage, Tokenizer
from bitdance_edge.model.prompt import PromptTokenizer
from bitdance_edge.model.tokenizer import image_from_bytes
from bitdance_edge.training.data import ImageSet
from bitdance_edge.training.errors import TrainingError
from bitdance_edge.training.shape_reader import ShapeReader, reading_scores
from bitdance_edge.training.shapes import Scene, all_scenes
from bitdance_edge.training.text_generator import draw_captions
from bitdance_edge.training.tokenizer import SCORE_BATCH, mean_psnr, reconstruct

SHARES = ("color", "shape", "both", "all_right")
DRAWN_AT_ONCE = 120
SINGLES_DRAWN = 8  # pictures of each single thing


def shape_tokenizer_scores(tokenizer: Tokenizer, held_out: ImageSet) -> dict[str, Any]:
    """PSNR of held-out drawings, what is read in them before and after the tokenizer, and how the bits are used."""
    rebuilt = reconstruct(tokenizer, held_out.images)
    with torch.no_grad():
        bits = torch.cat([tokenizer.encode(image_from_bytes(part)) for part in held_out.images.split(SCORE_BATCH)])
    return {
        "held_out_images": len(held_out),
        "psnr_db": round(mean_psnr(held_out.images, rebuilt), 2),
        "read_in_drawings": _read(held_out, held_out.images),
        "read_in_reconstructions": _read(held_out, rebuilt),
        "share_of_ones_per_bit": [round(share, 3) for share in (bits > 0).float().mean(dim=(0, 2, 3)).tolist()],
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
    """What is read in pictures of ``captions`` held-out captions a seed, and of every single thing.

    Raises:
        TrainingError: more captions than are held out, or no seed.
    """
    if not 1 <= captions <= len(held_out):
        raise TrainingError(f"--images is {captions}; allowed are 1 to {len(held_out)}, the held-out captions")
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
    """The scenes that the labels of drawn shapes stand for."""
    scenes = all_scenes()
    return [scenes[label] for label in images.labels.tolist()]


def _read(images: ImageSet, pictures: torch.Tensor) -> dict[str, float | int]:
    return reading_scores(ShapeReader.fitted(pictures.shape[1]), pictures.numpy(), scenes_of(images))


def _drawn_scores(
    model: TextToImage, prompts: PromptTokenizer, scenes: list[Scene], sampling: SamplingDefaults, seed: int
) -> dict[str, float | int]:
    captions = [scene.caption for scene in scenes]
    parts = range(0, len(captions), DRAWN_AT_ONCE)
    # disable=None: no progress line where standard error is not a terminal
    pictures = [
        draw_captions(model, prompts, captions[first : first + DRAWN_AT_ONCE], sampling, (seed, first))
        for first in tqdm(parts, desc=f"drawing, seed {seed}", leave=False, disable=None)
    ]
    return reading_scores(ShapeReader.fitted(model.config.sizes[0][0]), np.concatenate(pictures), scenes)
