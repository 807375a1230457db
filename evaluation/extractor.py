"""A user's network that reads images, as an ONNX file.

It takes uint8 images ``[N, H, W, 3]`` and gives ``features`` ``[N, F]`` and, if it reads classes, ``scores``
``[N, classes]``, from which a softmax makes probabilities.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bitdance_edge.evaluation.errors import EvaluationError
from bitdance_edge.runtime.backends.onnxruntime import cpu_options, import_onnxruntime
from bitdance_edge.runtime.bundle.json_file import read_json
from bitdance_edge.runtime.bundle.manifest import sha256
from bitdance_edge.runtime.bundle.size import Size

READ_BATCH = 256  # images that the network reads at once, at most
MOST_PIXELS = 2**23  # of the images that it reads at once
# Of the published weights pt_inception-2015-12-05-6726825d.pth, those of TensorFlow's Inception of that day. A distance
# is called FID only where it is of their features.
INCEPTION_WEIGHTS = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"


@dataclass(frozen=True)
class Read:
    """What a network reads in images: ``features`` float32 ``[N, F]``, and ``scores`` ``[N, classes]`` if any."""

    features: np.ndarray
    scores: np.ndarray | None

    def __len__(self) -> int:
        return len(self.features)

    @property
    def classes(self) -> np.ndarray | None:
        """The likeliest class of each image, int64 ``[N]``."""
        return None if self.scores is None else self.scores.argmax(1)

    @classmethod
    def joined(cls, parts: list["Read"]) -> "Read":
        scores = [part.scores for part in parts if part.scores is not None]
        return cls(np.concatenate([part.features for part in parts]), np.concatenate(scores) if scores else None)


class Extractor:
    """The network, loaded."""

    def __init__(self, path: Path, threads: int | None = None) -> None:
        """Load a network.

        Raises:
            EvaluationError: it cannot be loaded, or its inputs and outputs are others.
        """
        runtime = import_onnxruntime()
        if not path.is_file():  # ONNX Runtime would wait for a pipe
            raise EvaluationError(f"--features {path} is no file; give a network as an ONNX file")
        try:
            session = runtime.InferenceSession(str(path), cpu_options(threads or 0), providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's exceptions share no base class of their own
            raise EvaluationError(
                f"--features {path} cannot be loaded as a network: {str(error).splitlines()[0]}"
            ) from error
        self.path, self.session = path, session
        self.outputs = [output.name for output in session.get_outputs()]
        inputs = session.get_inputs()
        if "features" not in self.outputs:
            raise EvaluationError(f"{path} gives {', '.join(self.outputs)}; one output must be named 'features' [N, F]")
        if len(inputs) != 1 or inputs[0].type != "tensor(uint8)" or len(inputs[0].shape) != 4:
            found = ", ".join(f"{each.name}: {each.type} {each.shape}" for each in inputs)
            raise EvaluationError(f"{path} takes {found}; it must take uint8 images [N, H, W, 3]")
        self.input, self.shape = inputs[0].name, inputs[0].shape
        self.digest = sha256(path)

    def read(self, pixels: np.ndarray) -> Read:
        """Read images uint8 ``[N, H, W, 3]``.

        Raises:
            EvaluationError: the network does not take images of this size, or gives something else than ``Read``.
        """
        together = max(1, min(READ_BATCH, MOST_PIXELS // (pixels.shape[1] * pixels.shape[2])))
        parts = [self._read(pixels[first : first + together]) for first in range(0, len(pixels), together)]
        return Read.joined(parts)

    def _read(self, pixels: np.ndarray) -> Read:
        if self.size not in (None, Size.of(pixels)):
            raise EvaluationError(
                f"{self.path} reads images of {self.size} pixels, and cannot read images of {Size.of(pixels)} pixels: "
                f"give --size {self.size} for a folder of images, or another network"
            )
        try:
            results: list[Any] = self.session.run(None, {self.input: np.ascontiguousarray(pixels)})
        except Exception as error:  # as above
            raise EvaluationError(
                f"{self.path} takes {self.shape}, and cannot read images of {Size.of(pixels)} pixels: "
                f"{str(error).splitlines()[0]}"
            ) from error
        found = dict(zip(self.outputs, results, strict=True))
        self._require_rows("features", found["features"], len(pixels))
        if "scores" in found:
            self._require_rows("scores", found["scores"], len(pixels))
        return Read(found["features"], found.get("scores"))

    def _require_rows(self, name: str, values: np.ndarray, images: int) -> None:
        """Check an output: finite floats, a row an image."""
        if values.ndim != 2 or len(values) != images or values.dtype.kind != "f":
            found = f"{values.dtype} {list(values.shape)}"
            raise EvaluationError(
                f"the {name} of {self.path} are {found}, not floats [{images}, F] of {images} images; docs/evaluate.md "
                "says what a network gives"
            )
        if not np.isfinite(values).all():
            raise EvaluationError(f"the {name} of {self.path} are not all finite; check the network")

    @property
    def size(self) -> Size | None:
        """The one size of images that it takes, if it takes one."""
        height, width = self.shape[1:3]
        return Size(width=width, height=height) if isinstance(height, int) and isinstance(width, int) else None

    @property
    def is_inception(self) -> bool:
        """Whether it was made of the standard Inception's published weights, and not changed since.

        The file beside it says so, ``NAME.json``: its own digest and that of the weights.
        """
        try:
            data, _ = read_json(self.path.with_suffix(".json"))
            return data["weights_sha256"] == INCEPTION_WEIGHTS and data["onnx_sha256"] == self.digest
        except (OSError, ValueError, LookupError, TypeError):
            return False

    @property
    def distance_name(self) -> str:
        return "FID" if self.is_inception else "Fréchet distance"


def write_origin(network: Path, weights: Path) -> Path:
    """Record beside a network which weights it was made of; returns the path of the record."""
    origin = network.with_suffix(".json")
    about = {"weights": weights.name, "weights_sha256": sha256(weights), "onnx_sha256": sha256(network)}
    origin.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    return origin
