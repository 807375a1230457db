"""Two scores that a user's own network gives: class agreement, and the Fréchet distance to a folder of real images.

The network is an ONNX file as ``evaluation.extractor`` describes it. Neither score can tell INT4 from float32 on small
models: they are a sanity check in addition to bits and PSNR.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from bitdance_edge.calibration.kept import kept_array
from bitdance_edge.calibration.recipe import Draw
from bitdance_edge.calibration.sessions import BundleSessions
from bitdance_edge.evaluation.extractor import Extractor
from bitdance_edge.evaluation.images import image_files, read_images
from bitdance_edge.runtime.bundle.files import written_whole
from bitdance_edge.runtime.bundle.size import Size
from bitdance_edge.runtime.quality import frechet_distance

GENERATED_BATCH = 16  # images that are generated at once, and make one file


@dataclass(frozen=True, kw_only=True)
class JudgeOptions:
    """``features``: the network; ``references``: real images; ``floor``: other real images (None: halves of those)."""

    features: Path
    references: Path
    floor: Path | None = None


class Judge:
    def __init__(self, options: JudgeOptions, size: Size, threads: int | None) -> None:
        """Load the network and the real images, which are cropped and resized to ``size``.

        Raises:
            EvaluationError: the network cannot be loaded or gives no ``features``, or too few images.
        """
        self.extractor = Extractor(options.features, threads)
        self.reference = self._features(options.references, size)
        if options.floor is None:
            order = np.random.default_rng(0).permutation(len(self.reference))
            half = len(order) // 2
            self.real, self.against = self.reference[order[:half]], self.reference[order[half:]]
        else:
            self.real, self.against = self._features(options.floor, size), self.reference

    def floor(self, images: int) -> tuple[float, int]:
        """Return the distance of at most ``images`` real images to the references, and the number of them."""
        order = np.random.default_rng(0).permutation(len(self.real))[:images]
        return frechet_distance(self.real[order], self.against), len(order)

    def scores(self, pixels: np.ndarray, classes: Sequence[int | None]) -> dict[str, float]:
        """Return ``frechet`` and, where classes are asked for and read, ``class_agreement``, a share of the images."""
        read = self.extractor.read(pixels)
        scores = {"frechet": frechet_distance(read.features, self.reference)}
        if read.classes is None or None in classes:
            return scores
        return {**scores, "class_agreement": float(np.mean(read.classes == np.array(classes)))}

    def _features(self, folder: Path, size: Size) -> np.ndarray:
        return self.extractor.read(read_images(image_files(folder), size)).features


def judge_both(
    judge: Judge, reference: BundleSessions, calibrated: BundleSessions, draw: Draw, folder: Path
) -> dict[str, Any]:
    """Score the images of both bundles, of the same classes and noise; ``folder`` keeps them."""
    floor, real = judge.floor(draw.images)
    scores: dict[str, Any] = {"images": draw.images, "seed": draw.seed, "floor": floor, "floor_images": real}
    scores["references"] = len(judge.reference)
    for name, sessions in (("reference", reference), ("calibrated", calibrated)):
        scores[name] = judge.scores(*_generated(sessions, draw, folder))
    return scores


def _generated(sessions: BundleSessions, draw: Draw, folder: Path) -> tuple[np.ndarray, list[int | None]]:
    """Generate pixels uint8 ``[images, H, W, 3]``, with the classes asked for, None where a prompt was.

    They are kept on disk batch by batch, so that a run that was stopped goes on from there.
    """
    bundle = sessions.bundle
    key = hashlib.sha256(json.dumps([bundle.digest, asdict(draw)], sort_keys=True).encode()).hexdigest()[:12]
    requests = list(draw.requests(bundle.model, GENERATED_BATCH))
    batches = {folder / f"images-{key}" / f"batch-{i:05d}.npy": request for i, request in enumerate(requests)}
    with sessions.pipeline(GENERATED_BATCH) as pipeline:
        for path, request in tqdm(batches.items(), desc=f"images of {bundle.name}", leave=False, disable=None):
            if not path.is_file():
                tokens = np.stack([image.tokens for image in pipeline.generate(request)])
                with written_whole(path) as file:
                    np.save(file, pipeline.decode(tokens, size=draw.size), allow_pickle=False)
    classes = [image.class_id for request in requests for image in request.resolve(bundle).images]
    size = draw.image_size(bundle.model).pixels
    return np.concatenate([kept_array(path, (size.height, size.width, 3)) for path in batches]), classes
