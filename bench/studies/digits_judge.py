"""The classifier of the digits as a network for ``bitdance-edge calibrate --features``, with real images.

    python bench/studies/digits_judge.py --out judge

writes ``features.onnx`` (uint8 ``[N, 32, 32, 3]`` to ``features`` and ``scores``), ``references/`` (the 364 held-out
digits) and ``real/`` (all training digits); the distance between the two folders is the floor for real images.
"""

import argparse
from pathlib import Path

import onnx
import torch
from PIL import Image
from torch import Tensor, nn

from bitdance_edge.model.tokenizer import image_from_bytes
from bitdance_edge.runtime.image import save_png
from bitdance_edge.training.classifier import Classifier, train_classifier
from bitdance_edge.training.data import digits
from bitdance_edge.training.evaluate import CLASSIFIER_SEED
from bitdance_edge.training.named_recipes import recipe_named

SIDE = 32


class Judge(nn.Module):
    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        features = self.classifier.embed(image_from_bytes(pixels))
        return features, self.classifier.scores(features)


def write_network(classifier: Classifier, path: Path) -> None:
    """Write a classifier as a network that ``evaluate`` and ``calibrate`` take."""
    program = torch.onnx.export(
        Judge(classifier).eval(),
        (torch.zeros(3, SIDE, SIDE, 3, dtype=torch.uint8),),
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("N", min=1, max=65536)},),
        input_names=["pixels"],
        output_names=["features", "scores"],
        verbose=False,
    )
    assert program is not None
    onnx.save(program.model_proto, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    train, held_out = digits(SIDE).split()
    classifier = train_classifier(train, recipe_named("digits-4x"), CLASSIFIER_SEED)
    right = (classifier.read(held_out.images)[1] == held_out.labels).float().mean().item()
    print(f"the classifier reads {100 * right:.2f} % of the held-out digits right")
    args.out.mkdir(parents=True, exist_ok=True)
    write_network(classifier, args.out / "features.onnx")
    for name, images in (("references", held_out), ("real", train)):
        for number, (pixels, label) in enumerate(zip(images.images, images.labels, strict=True)):
            save_png(Image.fromarray(pixels.numpy()), args.out / name / f"{number:04d}-{int(label)}.png")


if __name__ == "__main__":
    main()
