"""Scores through the digits' network are those that ``training/evaluate.py`` reports for the same images."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

from bitdance_edge.evaluation.extractor import Extractor
from bitdance_edge.runtime.quality import Gaussian
from bitdance_edge.scale.features import SourceFeatures
from bitdance_edge.scale.reference import Reference
from bitdance_edge.scale.scores import scores
from bitdance_edge.training.classifier import train_classifier
from bitdance_edge.training.data import digits
from bitdance_edge.training.evaluate import _agreement, _frechet
from bitdance_edge.training.named_recipes import recipe_named

STUDIES = Path(__file__).parents[2] / "bench" / "studies"


def study(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, STUDIES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_distance_and_agreement_are_those_of_training(tmp_path: Path) -> None:
    train, held_out = digits(32).split()
    classifier = train_classifier(train, recipe_named("digits-4x"), seed=0, steps=30)
    study("digits_judge").write_network(classifier, tmp_path / "features.onnx")
    extractor = Extractor(tmp_path / "features.onnx", threads=1)
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[:300]
    images, labels = train.images[order], train.labels[order]
    reference = extractor.read(held_out.images.numpy()).features
    found = scores(
        SourceFeatures("digits", extractor.read(images.numpy()), labels.numpy()),
        Reference("held out", Gaussian.fitted(reference), reference),
        extractor,
        0,
    )
    want = _frechet(classifier.read(images)[0], classifier.read(held_out.images)[0])
    assert found["frechet"].value == pytest.approx(want, abs=0.0006) and want > 0.1
    assert found["class_agreement"].value == pytest.approx(_agreement(classifier, images, labels), abs=1e-4)
