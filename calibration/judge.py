"""Two scores that a user's own network gives: class agreement, and the Fréchet distance to a folder of real images.

The network is an ONNX file that takes uint8 images ``[N, H, W, 3]`` and gives ``features`` ``[N, F]`` and, if it reads
classes, ``scores`` ``[N, classes]``. Neither score can tell INT4 from float32 on small models: they are a sanity check
in addition to bits and PSNR.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from bitdance_edge.calibration.errors import CalibrationError
from bitdance_edge.calibration.kept import kept_array
from bitdance_edge.calibration.recipe import Draw
from bitdance_edge.calibration.sessions import BundleSessions
from bitdance_edge.runtime.backends.onnxruntime import cpu_options, import_onnxruntime
from bitdance_edge.runtime.bundle.files import written_whole
from bitdance_edge.runtime.bundle.size import Size
from bitdance_edge.runtime.picture import load_pixels
from bitdance_edge.runtime.quality import frechet_distance

READ_BATCH = 256  # images that the network reads at once
GENERATED_BATCH = 16  # images that are generated at once, and make one file
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


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
            CalibrationError: the network cannot be loaded or gives no ``features``, or too few images.
        """
        self.session = _load(options.features, threads)
        self.outputs = [output.name for output in self.session.get_outputs()]
        if "features" not in self.outputs:
            raise CalibrationError(
                f"{options.features} gives {', '.join(self.outputs)}; one output must be named 'features' [N, F]"
            )
        self.reference = self.read(_images(options.references, size))[0]
        if options.floor is None:
            order = np.random.default_rng(0).permutation(len(self.reference))
            half = len(order) // 2
            self.real, self.against = self.reference[order[:half]], self.reference[order[half:]]
        else:
            self.real, self.against = self.read(_images(options.floor, size))[0], self.reference

    def read(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Return features ``[N, F]`` and the likeliest classes int64 ``[N]``, None where the network reads none."""
        parts = []
        for first in range(0, len(pixels), READ_BATCH):
            results = self.session.run(None, {self.session.get_inputs()[0].name: pixels[first : first + READ_BATCH]})
            parts.append(dict(zip(self.outputs, results, strict=True)))
        features = np.concatenate([part["features"] for part in parts])
        classes = np.concatenate([part["scores"] for part in parts]).argmax(1) if "scores" in self.outputs else None
        return features, classes

    def floor(self, images: int) -> tuple[float, int]:
        """Return the distance of at most ``images`` real images to the references, and the number of them."""
        order = np.random.default_rng(0).permutation(len(self.real))[:images]
        return frechet_distance(self.real[order], self.against), len(order)

    def scores(self, pixels: np.ndarray, classes: Sequence[int | None]) -> dict[str, float]:
        """Return ``frechet`` and, where classes are asked for and read, ``class_agreement``, a share of the images."""
        features, read = self.read(pixels)
        scores = {"frechet": frechet_distance(features, self.reference)}
        if read is None or None in classes:
            return scores
        return {**scores, "class_agreement": float(np.mean(read == np.array(classes)))}


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


def _load(path: Path, threads: int | None) -> Any:
    runtime = import_onnxruntime()
    try:
        return runtime.InferenceSession(str(path), cpu_options(threads or 0), providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base class of their own
        raise CalibrationError(
            f"--features {path} cannot be loaded as a network: {str(error).splitlines()[0]}"
        ) from error


def _images(folder: Path, size: Size) -> np.ndarray:
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if len(files) < 2:
        raise CalibrationError(f"{folder} holds {len(files)} images; a distribution needs at least 2")
    return np.stack([load_pixels(path, size.height, size.width) for path in files])
