"""Variation and masks on the shipped models: whether the prompt is obeyed, what is kept, and what it costs.

    python bench/studies/edit_study.py bundles/digits-4x bundles/shapes-16x --out runs/edit
    python bench/studies/edit_pages.py runs/edit bundles/digits-4x bundles/shapes-16x --out docs/edit

Writes a JSON file for every finished point; finished points are not made again, so an interrupted run continues.
Digits are real held-out ones, read by the classifier that ``evaluate`` uses; shapes are clean drawings, read by the
reader of ``shapes_reading.py``.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from bitdance_edge.runtime import GeneratedImage, Pipeline, Request, written_whole
from bitdance_edge.runtime.bundle.stage_names import StageName
from bitdance_edge.training.classifier import Classifier, train_classifier
from bitdance_edge.training.data import digits
from bitdance_edge.training.evaluate import CLASSIFIER_SEED
from bitdance_edge.training.named_recipes import recipe_named
from bitdance_edge.training.shape_reader import ShapeReader
from bitdance_edge.training.shapes import COLORS, SHAPES, Scene, Thing, all_scenes, render

STRENGTHS = (0.2, 0.35, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
CANDIDATES = (1, 8)
HARD = ("top", "left")  # where the model sees nothing of what follows
DIGITS, PAIRS, SEED = 100, 64, 1
SIDES = {
    "top": np.s_[:4, :],
    "left": np.s_[:, :4],
    "right": np.s_[:, 4:],
    "bottom": np.s_[4:, :],
    "middle": np.s_[2:6, 2:6],
}
Result = dict[str, Any]
Score = Callable[[Sequence[GeneratedImage]], Result]


def side_mask(name: str) -> np.ndarray:
    """A mask of tokens, bool [8, 8]."""
    mask = np.zeros((8, 8), bool)
    mask[SIDES[name]] = True
    return mask


@dataclass(frozen=True)
class Point:
    """One point of the study: a request for all its images, and how they are scored."""

    name: str
    request: Request
    score: Score

    def run(self, pipeline: Pipeline) -> Result:
        before = launches(pipeline)
        images = pipeline.generate(self.request)
        settings = self.request.resolve(pipeline.bundle)
        rounds = sum(len(batch.rounds(pipeline.max_batch)) for batch in settings.batches(pipeline.max_batch))
        a_round = (launches(pipeline) - before) / rounds
        return {"point": self.name, "images": len(images), "head_launches": a_round, **self.score(images)}


def launches(pipeline: Pipeline) -> int:
    times = pipeline.times()
    return times[StageName.HEAD].launches if StageName.HEAD in times else 0


def kept(images: Sequence[GeneratedImage], tokens: np.ndarray) -> float:
    """The share of bits that are those of the images before."""
    return round(float(np.mean(np.stack([image.tokens for image in images]) == tokens)), 4)


class Digits:
    """Real held-out digits, as many of each class."""

    def __init__(self, pipeline: Pipeline) -> None:
        train, held_out = digits(32).split()
        rows = [np.flatnonzero(held_out.labels.numpy() == number)[: DIGITS // 10] for number in range(10)]
        chosen = held_out[np.concatenate(rows)]
        self.pictures, self.labels = chosen.images.numpy(), chosen.labels.numpy()
        self.classifier: Classifier = train_classifier(train, recipe_named("digits-4x"), CLASSIFIER_SEED)
        self.tokens = pipeline.tokenize(self.pictures)
        self.rebuilt = pipeline.decode(self.tokens)

    def read(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        return self.classifier.read(torch.from_numpy(np.stack(list(pictures))))[1].numpy()

    def points(self) -> Iterator[Point]:
        other = (self.labels + 3) % 10

        def score(wanted: np.ndarray) -> Score:
            return lambda images: {
                "agreement": round(float((self.read(_shown(images)) == wanted).mean()), 4),
                "bits_kept": kept(images, self.tokens),
            }

        same = Request(classes=self.labels.tolist(), seed=SEED)
        yield Point("generated", same, score(self.labels))
        for strength in STRENGTHS:
            asked = replace(same, init=self.pictures, strength=strength)
            yield Point(f"vary-same-{strength}", asked, score(self.labels))
            yield Point(f"vary-other-{strength}", replace(asked, classes=other.tolist()), score(other))
        for side in SIDES:
            for candidates in CANDIDATES if side in HARD else (1,):
                asked = replace(same, init=self.pictures, mask=side_mask(side), candidates=candidates)
                yield Point(f"mask-{side}-{candidates}", asked, score(self.labels))

    def reference(self) -> Result:
        return {
            "real": round(float((self.read(list(self.pictures)) == self.labels).mean()), 4),
            "reconstructed": round(float((self.read(list(self.rebuilt)) == self.labels).mean()), 4),
        }


class Shapes:
    """Clean drawings of one thing, of which colour or shape is changed, and of two, of which one is drawn anew."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.reader = ShapeReader.fitted(64)
        self.singles = [scene for scene in all_scenes() if scene.relation is None] * 2
        held_out = [scene for scene in all_scenes() if scene.held_out]
        rows = np.random.default_rng(SEED).permutation(len(held_out))[:PAIRS]
        self.pairs = [held_out[row] for row in rows]
        self.pictures = render(self.singles, 64, SEED)
        self.paired = render(self.pairs, 64, SEED + 1)
        self.tokens = pipeline.tokenize(self.pictures)
        self.rebuilt = pipeline.decode(self.tokens), pipeline.reconstruct(self.paired)

    def right(self, pictures: Sequence[Any], scenes: Sequence[Scene], place: str | None = None) -> Result:
        """Shares of things read right: all, or those at one place."""
        found = [
            (seen.color == thing.color, seen.shape == thing.shape)
            for picture, scene in zip(pictures, scenes, strict=True)
            for thing, where in zip(scene.things, scene.places, strict=True)
            if place in (None, where)
            for seen in [self.reader.read(np.asarray(picture), where)]
        ]
        shares = np.array(found)
        return {
            "things": len(found),
            "color": round(float(shares[:, 0].mean()), 4),
            "shape": round(float(shares[:, 1].mean()), 4),
            "both": round(float(shares.all(axis=1).mean()), 4),
        }

    def points(self) -> Iterator[Point]:
        def score(scenes: Sequence[Scene]) -> Score:
            return lambda images: {
                **self.right(_shown(images), scenes),
                "bits_kept": kept(images, self.tokens),
            }

        one = Request(prompts=[scene.caption for scene in self.singles], seed=SEED)
        yield Point("generated", one, score(self.singles))
        changes = {
            "same": self.singles,
            "color": _changed(self.singles, color=3),
            "shape": _changed(self.singles, 0, 1),
        }
        for strength in STRENGTHS:
            for name, scenes in changes.items():
                asked = replace(one, prompts=[s.caption for s in scenes], init=self.pictures, strength=strength)
                yield Point(f"vary-{name}-{strength}", asked, score(scenes))
        inner = np.zeros((8, 8), bool)
        inner[1:7, 1:7] = True
        scenes = _changed(self.singles, color=3, shape=1)
        asked = replace(one, prompts=[s.caption for s in scenes], init=self.pictures, mask=inner)
        yield Point("mask-inner", asked, score(scenes))
        yield from self._halves()
        for side in ("top", "left", "right", "bottom"):
            yield from self._redrawn(side)

    def _halves(self) -> Iterator[Point]:
        """One thing, in the middle, half of which is redrawn as it was."""
        things = len(self.singles) // 2
        scenes, pictures = self.singles[:things], self.pictures[:things]
        one = Request(prompts=[scene.caption for scene in scenes], seed=SEED, init=pictures)
        for side in ("left", "top", "right", "bottom"):
            for candidates in CANDIDATES if side in HARD else (1,):
                asked = replace(one, mask=side_mask(side), candidates=candidates)
                yield Point(f"mask-half-{side}-{candidates}", asked, lambda made: self.right(_shown(made), scenes))

    def _redrawn(self, side: str) -> Iterator[Point]:
        """Pairs of which the thing at one place becomes another."""
        rows = [row for row, scene in enumerate(self.pairs) if side in scene.places]
        scenes = []
        for row in rows:
            things = list(self.pairs[row].things)
            at = self.pairs[row].places.index(side)
            (one,) = _changed([Scene((things[at],))], color=3, shape=1)
            things[at] = one.things[0]
            scenes.append(replace(self.pairs[row], things=tuple(things)))

        def score(images: Sequence[GeneratedImage]) -> Result:
            return {
                **self.right(_shown(images), scenes, side),
                "all_things": self.right(_shown(images), scenes)["both"],
            }

        for candidates in CANDIDATES if side in HARD else (1,):
            asked = Request(
                prompts=[scene.caption for scene in scenes],
                seed=SEED,
                init=self.paired[rows],
                mask=side_mask(side),
                candidates=candidates,
            )
            yield Point(f"mask-{side}-{candidates}", asked, score)

    def reference(self) -> Result:
        return {
            "drawn": self.right(list(self.pictures), self.singles),
            "reconstructed": self.right(list(self.rebuilt[0]), self.singles),
            "pairs_drawn": self.right(list(self.paired), self.pairs),
            "pairs_reconstructed": self.right(list(self.rebuilt[1]), self.pairs),
        }


def _shown(images: Sequence[GeneratedImage]) -> list[np.ndarray]:
    return [np.asarray(image.to_pil()) for image in images]


def _changed(scenes: Sequence[Scene], color: int = 0, shape: int = 0) -> list[Scene]:
    """Single things with another colour and shape, so many further in their lists."""
    colors, shapes = list(COLORS), list(SHAPES)

    def moved(thing: Thing) -> Thing:
        return Thing(
            colors[(colors.index(thing.color) + color) % len(colors)],
            shapes[(shapes.index(thing.shape) + shape) % len(shapes)],
        )

    return [replace(scene, things=tuple(map(moved, scene.things))) for scene in scenes]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    for bundle in args.bundles:
        with Pipeline.open(bundle, device="cpu", threads=args.threads) as pipeline:
            study = Shapes(pipeline) if pipeline.bundle.text else Digits(pipeline)
            name = pipeline.bundle.name
            write(args.out / f"{name}-reference.json", study.reference())
            for point in tqdm(list(study.points()), desc=name):
                file = args.out / f"{name}-{point.name}.json"
                if not file.exists():
                    write(file, point.run(pipeline))


def write(path: Path, result: Result) -> None:
    with written_whole(path) as file:
        file.write(json.dumps(result).encode())


if __name__ == "__main__":
    main()
