"""Scores of a finished class-conditional checkpoint, seeded, as a dictionary that can be written as JSON.

Class agreement does not show small losses of precision. The Fréchet distance grows as the number of images shrinks, so
the distance of the same number of real images is reported with it.
"""

from collections.abc import Iterator
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bitdance_edge.model import BitDance, SamplingDefaults, Tokenizer
from bitdance_edge.model.tokenizer import image_to_bytes
from bitdance_edge.runtime.quality import frechet_distance
from bitdance_edge.training.classifier import Classifier, train_classifier
from bitdance_edge.training.errors import TrainingError
from bitdance_edge.training.image_set import ImageSet
from bitdance_edge.training.recipes import TokenizerRecipe, TrainingRecipe
from bitdance_edge.training.tokenizer import mean_psnr, reconstruct, share_of_ones

CLASSIFIER_SEED = 0
SAMPLE_BATCH = 256


def generate(model: BitDance, classes: Tensor, sampling: SamplingDefaults, seed: int) -> Tensor:
    """Generate images uint8 ``[N, H, W, 3]`` of ``classes`` int64 ``[N]`` by the plain sampler."""
    images = []
    for batch, rows in enumerate(classes.to(model.backbone.cos.device).split(SAMPLE_BATCH)):
        noise = _noise(model, len(rows), sampling, (seed, batch))
        tokens = model.sample(
            rows, steps=sampling.steps, guidance=sampling.guidance, schedule=sampling.guidance_schedule, noise=noise
        )
        with torch.no_grad():
            images.append(image_to_bytes(model.tokenizer.decode(model.to_latent(tokens))).cpu())
    return torch.cat(images)


def _noise(model: BitDance, rows: int, sampling: SamplingDefaults, seed: tuple[int, int]) -> Iterator[Tensor]:
    """Draw standard normal noise ``[B, P, C]``; ``[2B, P, C]`` for the unguided first patch of the linear schedule."""
    generator = torch.Generator().manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))
    separate = sampling.steps + 1 if sampling.guidance > 1 and sampling.guidance_schedule == "linear" else 0
    for draw in count():
        drawn = 2 * rows if draw < separate else rows
        noise = torch.randn(drawn, model.config.tokens_per_step, model.config.bits, generator=generator)
        yield noise.to(model.backbone.cos.device)


def tokenizer_scores(
    tokenizer: Tokenizer, recipe: TokenizerRecipe, train: ImageSet, held_out: ImageSet
) -> dict[str, Any]:
    """Score a tokenizer on held-out images: PSNR, class agreement of the reconstructions, share of ones per bit."""
    classifier = train_classifier(train, recipe, CLASSIFIER_SEED)
    rebuilt = reconstruct(tokenizer, held_out.images)
    return {
        "held_out_images": len(held_out),
        "psnr_db": round(mean_psnr(held_out.images, rebuilt), 2),
        "classifier": _classifier_report(classifier, held_out),
        "class_agreement_of_reconstructions": _agreement(classifier, rebuilt, held_out.labels),
        "share_of_ones_per_bit": share_of_ones(tokenizer, held_out.images),
    }


def generator_scores(
    model: BitDance,
    recipe: TrainingRecipe,
    train: ImageSet,
    held_out: ImageSet,
    *,
    images: int,
    seeds: tuple[int, ...],
    sampling: SamplingDefaults,
) -> dict[str, Any]:
    """Score generated images, ``images`` per seed: class agreement, Fréchet distance, nearest training images.

    The requested classes are those of as many training images, whose own Fréchet distance is the floor.

    Raises:
        TrainingError: there are fewer training images than ``images``, or there is no seed.
    """
    if not 1 <= images <= len(train):
        raise TrainingError(f"--images is {images}; allowed are 1 to {len(train)}, the number of training images")
    if not seeds:
        raise TrainingError("--seeds is empty; give at least one number")
    classifier = train_classifier(train, recipe, CLASSIFIER_SEED)
    real = train[np.random.default_rng(CLASSIFIER_SEED).permutation(len(train))[:images]]
    reference = classifier.read(held_out.images)[0]
    rebuilt = reconstruct(model.tokenizer, real.images)
    runs = [
        _generated_scores(classifier, generate(model, real.labels, sampling, seed), real.labels, reference, train)
        for seed in seeds
    ]
    return {
        "images_per_seed": images,
        "seeds": list(seeds),
        "held_out_images": len(held_out),
        "sampling": {"steps": sampling.steps, "guidance": sampling.guidance, "schedule": sampling.guidance_schedule},
        "classifier": _classifier_report(classifier, held_out),
        "class_agreement": round(float(np.mean([run["class_agreement"] for run in runs])), 4),
        "frechet": round(float(np.mean([run["frechet"] for run in runs])), 3),
        "frechet_real_floor": _frechet(classifier.read(real.images)[0], reference),
        "frechet_of_reconstructions": _frechet(classifier.read(rebuilt)[0], reference),
        "nearest_training_image": {
            "unit": "root mean square difference of pixels, 0 to 255",
            "generated": {
                name: round(float(np.mean([run["nearest"][name] for run in runs])), 2) for name in runs[0]["nearest"]
            },
            "held_out": _quantiles(nearest_distances(held_out.images, train.images)),
            "reconstructed_training_images": _quantiles(nearest_distances(rebuilt, train.images)),
        },
        "per_seed": [{"seed": seed, **run} for seed, run in zip(seeds, runs, strict=True)],
    }


def _generated_scores(
    classifier: Classifier, images: Tensor, classes: Tensor, reference: Tensor, train: ImageSet
) -> dict[str, Any]:
    return {
        "class_agreement": _agreement(classifier, images, classes),
        "frechet": _frechet(classifier.read(images)[0], reference),
        "nearest": _quantiles(nearest_distances(images, train.images)),
    }


def _classifier_report(classifier: Classifier, held_out: ImageSet) -> dict[str, Any]:
    return {"seed": CLASSIFIER_SEED, "held_out_accuracy": _agreement(classifier, held_out.images, held_out.labels)}


def _agreement(classifier: Classifier, images: Tensor, classes: Tensor) -> float:
    """The share of the images for which the classifier gives the requested class."""
    return round((classifier.read(images)[1] == classes).float().mean().item(), 4)


def _frechet(features: Tensor, others: Tensor) -> float:
    return round(frechet_distance(features.numpy(), others.numpy()), 3)


def nearest_distances(images: Tensor, train: Tensor) -> Tensor:
    """Return each image's root mean square pixel difference to the nearest of ``train``; uint8 ``[N, H, W, 3]``."""
    flat, flat_train = images.flatten(1).float(), train.flatten(1).float()
    return torch.cdist(flat, flat_train).amin(dim=1) / flat.shape[1] ** 0.5


def _quantiles(distances: Tensor) -> dict[str, float]:
    lowest, median = torch.quantile(distances, torch.tensor([0.01, 0.5])).tolist()
    return {"first_percentile": round(lowest, 2), "median": round(median, 2)}
