"""Sampling steps, guidance and the deterministic limit on the shipped models: quality and cost.

    python bench/studies/digits_judge.py --out judge
    python bench/studies/sampler_study.py bundles --judge judge --out runs/sampler            # every point of the grid
    python bench/studies/sampler_study.py bundles --judge judge --out runs/sampler --confirm sde:5:1.5:constant
    python bench/studies/sampler_plots.py runs/sampler --out docs/sampler

Writes a JSON file for every finished point, and its tokens; finished points are not made again, so an interrupted run
continues. All points of a model draw the same classes or captions with the same seeds.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from bitdance_edge.calibration.judge import Judge, JudgeOptions
from bitdance_edge.runtime import Pipeline, Request, Size
from bitdance_edge.runtime.bundle.files import written_whole
from bitdance_edge.runtime.quality import frechet_distance
from bitdance_edge.training.data import digits
from bitdance_edge.training.shape_reader import ShapeReader, reading_scores
from bitdance_edge.training.shapes import all_scenes, render

DIGITS, SHAPES = ("digits-1x", "digits-4x", "digits-16x"), "shapes-16x"
IMAGES = {**dict.fromkeys(DIGITS, 500), SHAPES: 208}
CONFIRMED = {**dict.fromkeys(DIGITS, 1000), SHAPES: 420}
CONFIRMING_SEED = 1_000_000
BATCH = {**dict.fromkeys(DIGITS, 50), SHAPES: 16}
OF_ONE_CAPTION = 2  # pictures, whose bits are compared
STEPS = (2, 3, 5, 8, 10, 15, 20, 30, 50, 100)
GUIDANCE_STEPS = 10  # at which guidance is varied
SEED = 100_000


@dataclass(frozen=True)
class Point:
    model: str
    sampler: str
    steps: int
    guidance: float
    schedule: str

    @property
    def name(self) -> str:
        return f"{self.model}-{self.sampler}-{self.steps}-{self.guidance:g}-{self.schedule}"

    def request(self, **fields: Any) -> Request:
        return Request(
            sampler=self.sampler,
            steps=self.steps,
            guidance=self.guidance,
            guidance_schedule=self.schedule,
            **fields,
        )


def grid(model: str, guidance: float) -> list[Point]:
    """Steps at the published guidance, then guidance at ``GUIDANCE_STEPS``."""
    points = [Point(model, sampler, steps, guidance, "constant") for steps in STEPS for sampler in ("sde", "ode")]
    other = {"constant": (1.0, 1.25, 2.0, 3.0), "linear": (1.5, 2.0, 3.0)}
    if model == SHAPES:
        other = {"constant": (1.0, 1.5, 3.0, 5.0), "linear": (2.0, 3.0, 5.0)}
    for schedule, values in other.items():
        points += [Point(model, "sde", GUIDANCE_STEPS, value, schedule) for value in values]
        points += [Point(model, "ode", GUIDANCE_STEPS, value, schedule) for value in values if schedule == "constant"]
    if model in DIGITS:  # the best guidance, with other steps
        points += [Point(model, "sde", steps, 1.25, "constant") for steps in (5, 8, 20)]
    return points


class Digits:
    """Scores generated digits, relative to real ones."""

    def __init__(self, pipeline: Pipeline, judge: Path) -> None:
        options = JudgeOptions(features=judge / "features.onnx", references=judge / "references", floor=judge / "real")
        self.judge = Judge(options, Size(width=32, height=32), threads=1)
        train = digits(32).split()[0]
        self.real = _spreads(self.judge.extractor.read(train.images.numpy()).features, train.labels.numpy())
        self.real_bits = _bit_differences(pipeline.tokenize(train.images.numpy()), train.labels.numpy())

    def requests(self, images: int, batch: int) -> list[dict[str, Any]]:
        classes = [i % 10 for i in range(images)]
        return [{"classes": classes[first : first + batch]} for first in range(0, images, batch)]

    def scores(self, pixels: np.ndarray, tokens: np.ndarray) -> dict[str, Any]:
        wanted = np.arange(len(pixels)) % 10
        read = self.judge.extractor.read(pixels)
        features = read.features
        halves = [frechet_distance(half, self.judge.reference) for half in np.split(features, 2)]
        return {
            "class_agreement": float(np.mean(read.classes == wanted)),
            "frechet": frechet_distance(features, self.judge.reference),
            "frechet_of_halves": halves,
            "frechet_floor": self.judge.floor(len(pixels))[0],
            "feature_spread": _spreads(features, wanted) / self.real,
            "bit_spread": _bit_differences(tokens, wanted) / self.real_bits,
        }


class Shapes:
    """Scores pictures of held-out captions, ``OF_ONE_CAPTION`` of each."""

    def __init__(self, pipeline: Pipeline) -> None:
        held_out = [scene for scene in all_scenes() if scene.held_out]
        self.scenes = [held_out[row] for row in np.random.default_rng(0).permutation(len(held_out))]
        self.size = pipeline.bundle.model.default_size.height
        self.reader = ShapeReader.fitted(self.size)
        drawn = render(self._drawn(IMAGES[SHAPES]), self.size, 1)
        self.real_bits = _bit_differences(pipeline.tokenize(drawn), self._captions(len(drawn)))

    def requests(self, images: int, batch: int) -> list[dict[str, Any]]:
        prompts = [scene.caption for scene in self._drawn(images)]
        return [{"prompts": prompts[first : first + batch]} for first in range(0, images, batch)]

    def scores(self, pixels: np.ndarray, tokens: np.ndarray) -> dict[str, Any]:
        read = reading_scores(self.reader, pixels, self._drawn(len(pixels)))
        return {**read, "bit_spread": _bit_differences(tokens, self._captions(len(pixels))) / self.real_bits}

    def _drawn(self, images: int) -> list[Any]:
        return [scene for scene in self.scenes[: images // OF_ONE_CAPTION] for _ in range(OF_ONE_CAPTION)]

    def _captions(self, images: int) -> np.ndarray:
        return np.arange(images) // OF_ONE_CAPTION


def _spreads(features: np.ndarray, groups: np.ndarray) -> float:
    """Return the total variance of the features within a group, averaged over the groups."""
    return float(np.mean([features[groups == group].var(axis=0, ddof=1).sum() for group in np.unique(groups)]))


def _bit_differences(tokens: np.ndarray, groups: np.ndarray) -> float:
    """Return the share of bits in which two images of a group differ, averaged over pairs and groups."""
    shares = []
    for group in np.unique(groups):
        bits = tokens[groups == group].reshape((groups == group).sum(), -1) > 0
        ones, count = bits.mean(axis=0), len(bits)
        shares.append(np.mean(2 * ones * (1 - ones)) * count / (count - 1))
    return float(np.mean(shares))


def measure(
    pipeline: Pipeline, point: Point, scorer: Digits | Shapes, images: int, seed: int
) -> tuple[dict, np.ndarray]:
    """Return the scores of a point, and its tokens int8 ``[images, h*w, C]``."""
    started, made = time.process_time(), []
    requests = scorer.requests(images, BATCH[point.model])
    for number, fields in enumerate(tqdm(requests, desc=point.name, unit="batch", leave=False)):
        made += pipeline.generate(point.request(seed=seed + number * BATCH[point.model], **fields))
    tokens = np.stack([image.tokens for image in made])
    scores = scorer.scores(np.stack([image.pixels for image in made]), tokens)
    spent = time.process_time() - started
    return {**asdict(point), "images": images, "seed": seed, **scores, "cpu_seconds_an_image": spent / images}, tokens


def candidate(model: str, text: str) -> Point:
    sampler, steps, guidance, schedule = text.split(":")
    return Point(model, sampler, int(steps), float(guidance), schedule)


def write(path: Path, result: object) -> None:
    with written_whole(path) as file:
        file.write((json.dumps(result, indent=1) + "\n").encode())


def run(model: str, args: argparse.Namespace, part: Callable[[Pipeline, Any, Point], None]) -> None:
    with Pipeline.open(args.bundles / model, device="cpu", threads=1, max_batch=BATCH[model]) as pipeline:
        scorer = Shapes(pipeline) if model == SHAPES else Digits(pipeline, args.judge)
        published = pipeline.bundle.published_sampling
        part(pipeline, scorer, Point(model, "sde", published.steps, published.guidance, published.guidance_schedule))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path, help="folder of the exported bundles")
    parser.add_argument("--judge", type=Path, required=True, help="as made by bench/studies/digits_judge.py")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--models", nargs="+", default=[*DIGITS, SHAPES], choices=[*DIGITS, SHAPES])
    parser.add_argument(
        "--most-steps", type=int, default=max(STEPS), help="omit points with more steps (default: none)"
    )
    parser.add_argument(
        "--confirm",
        nargs="+",
        metavar="SAMPLER:STEPS:GUIDANCE:SCHEDULE",
        help="these and the published settings, on more images of other seeds",
    )
    args = parser.parse_args()

    def scored(pipeline: Pipeline, scorer: Digits | Shapes, published: Point) -> None:
        points = [point for point in grid(published.model, published.guidance) if point.steps <= args.most_steps]
        for point in tqdm(points, desc=published.model, unit="point"):
            path = args.out / "points" / f"{point.name}.json"
            if not path.is_file():
                result, tokens = measure(pipeline, point, scorer, IMAGES[point.model], SEED)
                with written_whole(path.with_suffix(".npy")) as file:
                    np.save(file, np.packbits(tokens > 0, axis=-1), allow_pickle=False)
                write(path, result)

    def confirmed(pipeline: Pipeline, scorer: Digits | Shapes, published: Point) -> None:
        for point in (*(candidate(published.model, text) for text in args.confirm), published):
            path = args.out / "confirmed" / f"{point.name}.json"
            if not path.is_file():
                write(path, measure(pipeline, point, scorer, CONFIRMED[point.model], CONFIRMING_SEED)[0])

    for model in args.models:
        run(model, args, confirmed if args.confirm else scored)


if __name__ == "__main__":
    main()
