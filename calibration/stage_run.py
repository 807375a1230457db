"""One stage on what was recorded of it, launch after launch."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from bitdance_edge.calibration.recording import Sample
from bitdance_edge.runtime.bundle.manifest import Bundle


class StageRun:
    """One stage on recorded samples. The cache is carried from each launch of an image to the next."""

    def __init__(self, bundle: Bundle, stage: str, session: Any) -> None:
        self.spec, self.session = bundle.stage(stage), session
        self.pairs = dict(bundle.cache_names()) if stage == "backbone" else {}
        self.cache: dict[str, np.ndarray] = {}

    def __call__(self, sample: Sample, outputs: Sequence[str]) -> list[np.ndarray]:
        """Run one sample; the outputs of these names."""
        if sample.launch == 0:
            rows = next(iter(sample.inputs.values())).shape[0]
            self.cache = {
                tensor.name: np.zeros(tensor.sized({"R": rows}), tensor.dtype)
                for tensor in self.spec.inputs
                if tensor.name in self.pairs
            }
        wanted = [*outputs, *(self.pairs[name] for name in self.cache)]
        results = self.session.run(wanted, {**sample.inputs, **self.cache})
        self.cache = dict(zip(self.cache, results[len(outputs) :], strict=True))
        return results[: len(outputs)]
