"""Two scores that a user's own network gives: class agreement, and the Fréchet distance to a folder of real images.

The network is an ONNX file that takes uint8 images ``[N, H, W, 3]`` and gives ``features`` ``[N, F]`` and, if it reads
classes, ``scores`` ``[N, classes]``. Neither score can tell INT4 from float32 on small models: they are a sanity check
beside bits and PSNR.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bitdance_edge.calibration.errors import CalibrationError
from bitdance_edge.runtime.backends.onnxruntime import cpu_options, import_onnxruntime
from bitdance_edge.runtime.image import load_pixels

BATCH = 256
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True, kw_only=True)
class JudgeOptions:
    """``features``: the network; ``references``: real images; ``floor``: other real images (None: halves of those)."""

    features: Path
    references: Path
    floor: Path | None = None


class Judge:
    def __init__(self, options: JudgeOptions, height: int, width: int, threads: int | None) -> None:
        """Load the network and the real images.

        Raises:
            CalibrationError: the network cannot be loaded or gives no ``features``, or too few images.
        """
        self.session = _load(options.features, threads)
        self.outputs = [output.name for output in self.session.get_outputs()]
        if "features" not in self.outputs:
            raise CalibrationError(
                f"{options.features} gives {', '.join(self.outputs)}; one output must be named 'features' [N, F]"
            )
        self.reference = self.read(_images(options.references, height, width))[0]
        if options.floor is None:
            order = np.random.default_rng(0).permutation(len(self.reference))
            half = len(order) // 2
            self.real, self.against = self.reference[order[:half]], self.reference[order[half:]]
        else:
            self.real, self.against = self.read(_images(options.floor, height, width))[0], self.reference

    def read(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Features ``[N, F]`` and the likeliest classes int64 ``[N]``, None where the network reads none."""
        parts = []
        for first in range(0, len(pixels), BATCH):
            results = self.session.run(None, {self.session.get_inputs()[0].name: pixels[first : first + BATCH]})
            parts.append(dict(zip(self.outputs, results, strict=True)))
        features = np.concatenate([part["features"] for part in parts])
        classes = np.concatenate([part["scores"] for part in parts]).argmax(1) if "scores" in self.outputs else None
        return features, classes

    def floor(self, images: int) -> tuple[float, int]:
        """The distance of at most so many real images to the references, and how many they were."""
        order = np.random.default_rng(0).permutation(len(self.real))[:images]
        return frechet(self.real[order], self.against), len(order)

    def scores(self, pixels: np.ndarray, classes: Sequence[int | None]) -> dict[str, float]:
        """``frechet`` and, where classes are asked for and read, the share ``class_agreement`` read as asked."""
        features, read = self.read(pixels)
        scores = {"frechet": frechet(features, self.reference)}
        if read is None or None in classes:
            return scores
        return {**scores, "class_agreement": float(np.mean(read == np.array(classes)))}


def frechet(features: np.ndarray, others: np.ndarray) -> float:
    """Fréchet distance between Gaussians fitted to two sets of features (M. Heusel et al., arXiv 1706.08500, eq. 6)."""
    one, other = features.astype(np.float64), others.astype(np.float64)
    first, second = np.cov(one, rowvar=False), np.cov(other, rowvar=False)
    shared = np.sqrt(np.linalg.eigvals(first @ second).real.clip(min=0)).sum()
    return float(np.square(one.mean(0) - other.mean(0)).sum() + np.trace(first) + np.trace(second) - 2 * shared)


def _load(path: Path, threads: int | None) -> Any:
    runtime = import_onnxruntime()
    try:
        return runtime.InferenceSession(str(path), cpu_options(threads or 0), providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base class of their own
        raise CalibrationError(
            f"--features {path} cannot be loaded as a network: {str(error).splitlines()[0]}"
        ) from error


def _images(folder: Path, height: int, width: int) -> np.ndarray:
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if len(files) < 2:
        raise CalibrationError(f"{folder} holds {len(files)} images; a distribution needs at least 2")
    return np.stack([load_pixels(path, height, width) for path in files])
