"""A small classifier of real images: it measures class agreement, and gives the features of the Fréchet distance."""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bitdance_edge.model.tokenizer import image_from_bytes
from bitdance_edge.training.data import augment
from bitdance_edge.training.image_set import TrainingImages, batch_rows
from bitdance_edge.training.recipes import TrainingRecipe

STEPS = 600
BATCH = 64
LEARNING_RATE = 3e-3
FEATURES = 64
READING_BATCH = 512


class Classifier(nn.Module):
    """Three strided convolutions to a 4x4 map, then ``FEATURES`` values, then one score per class."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        widths = (3, 32, 64, 64)
        self.convolutions = nn.ModuleList(
            nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.BatchNorm2d(outputs), nn.ReLU())
            for inputs, outputs in pairwise(widths)
        )
        self.features = nn.Linear(16 * widths[-1], FEATURES)
        self.scores = nn.Linear(FEATURES, classes)

    def embed(self, pixels: Tensor) -> Tensor:
        """Compute features ``[B, FEATURES]`` of float images ``[B, 3, H, W]`` in [-1, 1]."""
        for convolution in self.convolutions:
            pixels = convolution(pixels)
        return F.relu(self.features(F.adaptive_avg_pool2d(pixels, 4).flatten(1)))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.scores(self.embed(pixels))

    @torch.no_grad()
    def read(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return float32 features ``[N, FEATURES]`` and likeliest classes int64 ``[N]`` of uint8 ``[N, H, W, 3]``."""
        embedded = torch.cat([self.embed(image_from_bytes(batch)) for batch in images.split(READING_BATCH)])
        return embedded, self.scores(embedded).argmax(dim=1)


def train_classifier(train: TrainingImages, recipe: TrainingRecipe, seed: int, steps: int = STEPS) -> Classifier:
    """Train a classifier on ``train`` with the recipe's augmentation; the same seed gives the same classifier."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        classifier = Classifier(len(train.class_names))
        optimizer = torch.optim.AdamW(classifier.parameters(), weight_decay=0.05)
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * step / steps))
            batch = train[batch_rows(len(train), BATCH, step, seed)]
            scores = classifier(augment(image_from_bytes(batch.images), recipe))
            F.cross_entropy(scores, batch.labels, label_smoothing=0.05).backward()
            optimizer.step()
            optimizer.zero_grad()
    return classifier.eval().requires_grad_(False)
